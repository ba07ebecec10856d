"""Runs operations on the schema: one result of a query or mutation, a stream of a subscription."""

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from graphql import (
    ExecutionResult,
    Executor,
    FieldNode,
    GraphQLSyntaxError,
    OperationDefinitionNode,
    OperationType,
    create_source_event_stream,
)
from strawberry.utils.await_maybe import await_maybe

from db.core.errors import Forbidden
from db.core.identity import Caller
from graph.api.audited_field import record_forbidden
from graph.api.schema import Schema
from graph.auth import permissions
from graph.core import errors
from graph.core.event_batches import Batched
from graph.core.single_flight import Once
from graph.execution.document_cache import Documents, Operation
from graph.execution.event_sharing import MAX_SHARED_BYTES, Telling, Told, looks_of, weight
from graph.execution.request import GraphQLRequest
from graph.execution.response import (
    Answer,
    OperationRefused,
    answer_of,
    at_work,
    executed,
    faults_shown,
)
from graph.services import Services
from graph.telemetry.metrics import CANCELLED

_FLEET_FIELDS = {"availableNodes"}

_TURN = 32
"""Messages to one subscriber after which the others, and all else, have their turn."""

ALL_KINDS = frozenset(OperationType)


class KindNotAllowed(Exception):
    """Of what this way of asking is not for; `kind` is what it is."""

    def __init__(self, kind: OperationType) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Admitted:
    """An operation that this caller may run."""

    operation: Operation
    request: GraphQLRequest
    caller: Caller

    @property
    def is_subscription(self) -> bool:
        return self.operation.kind is OperationType.SUBSCRIPTION

    def looks(self, *, alike: bool = False) -> bytes:
        """As `looks_of` has it."""
        identity = self.caller.identity
        return looks_of(self.operation, self.request.variables, identity, alike=alike)


class Operations:
    """What all transports run operations by. One for each app.

    An event is executed and encoded once for all subscriptions to which it would look the same:
    those of one document, operation, variables and rights. So is a question about the fleet, until
    the next look at it.
    """

    def __init__(self, schema: Schema, services: Services, trusted: Iterable[str] = ()) -> None:
        """`trusted` are documents that may be asked for by their ids."""
        self._schema = schema
        settings = services.settings
        self._hides_suggestions = not settings.shows_schema
        self._bounds = settings.query_bounds()
        self._documents = Documents(
            schema.graphql,
            trusted,
            max_tokens=settings.max_query_tokens,
            shows_schema=settings.shows_schema,
        )
        self._services = services
        self._telling = Telling()
        self._answers: Once[tuple[bytes, int], Answer] = Once(MAX_SHARED_BYTES, weigh=weight)

    async def admit(
        self,
        request: GraphQLRequest,
        caller: Caller,
        allowed: Collection[OperationType] = ALL_KINDS,
    ) -> Admitted:
        """Raises OperationRefused for a document that is not valid.

        Raises KindNotAllowed, RequestRefused, BadInput, RateLimited, Forbidden and QueryTooComplex,
        too. What is forbidden is in the audit trail then.
        """
        self._services.limits.request(caller)
        try:
            document = self._documents.asked_for(request)
        except GraphQLSyntaxError as error:
            raise OperationRefused(errors.as_response([error])) from error
        operation = document.operation(request.operation_name)
        if operation.kind not in allowed:
            raise KindNotAllowed(operation.kind)
        if document.errors:
            raise OperationRefused(errors.as_response(document.errors))
        try:
            permissions.require(caller, operation.refused_fields)
        except Forbidden:
            await record_forbidden(self._services.context(caller), operation, request.variables)
            raise
        self._bounds.require(operation.complexity, request.variables)
        return Admitted(operation, request, caller)

    async def execute(self, admitted: Admitted) -> str:
        """The encoded response to a query or mutation.

        Raises OperationRefused when execution did not begin, and TookTooLong.
        """
        began, outcome = time.perf_counter(), CANCELLED
        try:
            async with asyncio.timeout(self._services.settings.request_seconds):
                answer = await self._answer(admitted)
            outcome = answer.outcome
        except asyncio.CancelledError as cancelled:
            errors.let_go(cancelled)
            raise
        except OperationRefused as refused:
            outcome = refused.code
            raise
        except TimeoutError as error:
            outcome = errors.TookTooLong.code
            raise errors.TookTooLong(self._services.settings.request_seconds) from error
        finally:
            operation, taken = admitted.operation, time.perf_counter() - began
            self._services.metrics.observe_operation(
                operation.counted_as, operation.kind.value, outcome, taken
            )
        return answer.payload

    async def _answer(self, admitted: Admitted) -> Answer:
        """What is said of one look at the fleet is the same until the next."""
        if not _asks_of_the_fleet_alone(admitted.operation.node):
            return await self._execute(admitted)
        look = self._services.fleet.current_look()
        if look is None:
            return await self._execute(admitted)
        work = partial(self._execute, admitted)
        return await self._answers.get((admitted.looks(), look), work)

    async def _execute(self, admitted: Admitted) -> Answer:
        plan = admitted.operation.plan
        arguments = plan.arguments(admitted.request.variables) if plan else None
        with faults_shown():
            if plan and arguments is not None:
                return answer_of(await plan.run(arguments, self._services.context(admitted.caller)))
            executor = self._executor(admitted)
            return answer_of(await executed(executor, executor.execute_operation))

    def _executor(self, admitted: Admitted) -> "Executor[Any]":
        """Raises OperationRefused for variables that are not of their types."""
        executor = self._schema.execution_context_class.build(
            self._schema.graphql,
            admitted.operation.document.node,
            context_value=self._services.context(admitted.caller),
            raw_variable_values=admitted.request.variables,
            operation_name=admitted.operation.name,
            hide_suggestions=self._hides_suggestions,
        )
        if isinstance(executor, list):
            raise OperationRefused(errors.as_response(executor))
        return executor

    async def subscribe(self, admitted: Admitted) -> AsyncGenerator[str, None]:
        """The encoded response to each event. Raises OperationRefused."""
        executor = self._executor(admitted)
        with (
            faults_shown(),
            at_work(executor),
            self._services.limits.subscription(admitted.caller),
        ):
            source = await await_maybe(create_source_event_stream(executor))
            if isinstance(source, ExecutionResult):
                raise OperationRefused(errors.as_response(source.errors or []))
            assert isinstance(source, Batched)  # noqa: S101  # as all our resolvers make them
            looks = admitted.looks(alike=source.alike)
            tell = partial(self._telling.tell, executor, admitted.operation.event_shape, looks)
            count = 0
            async with aclosing(source.batches) as batches:
                async for events in batches:
                    # All are begun at once, so that what they ask the database is asked for all.
                    for begun in [tell(event) for event in events]:
                        told = begun if isinstance(begun, Told) else await asyncio.shield(begun)
                        yield told.answer.payload
                        count += 1
                        if count % _TURN == 0:
                            await asyncio.sleep(0)


def _asks_of_the_fleet_alone(operation: OperationDefinitionNode) -> bool:
    return operation.operation is OperationType.QUERY and all(
        isinstance(selection, FieldNode) and selection.name.value in _FLEET_FIELDS
        for selection in operation.selection_set.selections
    )
