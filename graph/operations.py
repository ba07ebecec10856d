"""Runs operations on the schema: one result of a query or mutation, a stream of a subscription."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from graphql import (
    ExecutionResult,
    Executor,
    FieldNode,
    GraphQLError,
    GraphQLSyntaxError,
    NamedTypeNode,
    NonNullTypeNode,
    OperationDefinitionNode,
    VariableDefinitionNode,
    create_source_event_stream,
    execute_subscription_event,
    get_operation_ast,
)
from graphql import OperationType as OperationKind
from strawberry.types.execution import ExecutionResult as StrawberryResult
from strawberry.types.graphql import OperationType
from strawberry.utils.await_maybe import await_maybe

from db.errors import RegistryError
from db.identity import Caller
from graph import documents, errors, rights
from graph.batched import Batched
from graph.once import Once
from graph.requests import GraphQLRequest
from graph.schema import Schema
from graph.services import Services

MAX_SHARED_BYTES = 32 * 1024 * 1024
"""Of results that are kept because other subscriptions may ask for them."""

_FLEET_FIELDS = {"availableNodes"}

_EVENT_BYTES = 2000  # about what the event and its task take, whatever was asked of it

_TURN = 32
"""Messages to one subscriber after which the others, and all else, have their turn."""

QUERIES = {OperationType.QUERY}
QUERIES_AND_MUTATIONS = {OperationType.QUERY, OperationType.MUTATION}


class OperationRefused(Exception):
    """Not begun, or a stream that broke off; `errors` are as a response shows them."""

    def __init__(self, shown: list[dict[str, Any]]) -> None:
        super().__init__(shown)
        self.errors = shown


@dataclass(frozen=True, slots=True)
class _Answer:
    payload: str
    has_errors: bool = False

    @property
    def weight(self) -> int:
        """Of one with errors too much to be kept: the next who asks may have more luck."""
        return MAX_SHARED_BYTES + 1 if self.has_errors else len(self.payload)


class Operations:
    """What all transports run operations by. One for each app.

    An event is executed and encoded once for all subscriptions to which it would look the same:
    those of one document, operation, variables and rights. So is a question about the fleet, until
    the next look at it.
    """

    def __init__(self, schema: Schema, services: Services) -> None:
        self._schema = schema
        self._services = services
        self._shared: Once[tuple[bytes, int], _Shared] = Once(
            MAX_SHARED_BYTES, weigh=lambda shared: shared.answer.weight + _EVENT_BYTES
        )
        self._answers: Once[tuple[bytes, int], _Answer] = Once(
            MAX_SHARED_BYTES, weigh=lambda answer: answer.weight
        )

    def is_subscription(self, request: GraphQLRequest) -> bool:
        """False also of what is no operation at all."""
        operation = self._operation(request)
        return operation is not None and operation.operation is OperationKind.SUBSCRIPTION

    async def execute(
        self, request: GraphQLRequest, allowed: set[OperationType], caller: Caller
    ) -> str:
        """The encoded response. Raises OperationRefused when execution did not begin.

        Raises CannotGetOperationTypeError, InvalidOperationTypeError, RateLimited, Forbidden and
        TookTooLong, too.
        """
        self._services.limits.request(caller)
        operation = self._operation(request)
        self._require_right(request, operation, caller)
        began, outcome = time.perf_counter(), "errors"
        try:
            async with asyncio.timeout(self._services.settings.request_seconds):
                answer = await self._answer(request, operation, allowed, caller)
            outcome = "errors" if answer.has_errors else "ok"
        except TimeoutError as error:
            raise errors.TookTooLong(self._services.settings.request_seconds) from error
        finally:
            name = operation.name.value if operation and operation.name else None
            self._services.metrics.observe_operation(name, outcome, time.perf_counter() - began)
        return answer.payload

    def _operation(self, request: GraphQLRequest) -> OperationDefinitionNode | None:
        try:
            known = documents.validated(self._schema.graphql, request.query)
        except GraphQLSyntaxError:
            return None
        return get_operation_ast(known.document, request.operation_name)

    def _require_right(
        self, request: GraphQLRequest, operation: OperationDefinitionNode | None, caller: Caller
    ) -> None:
        """Raises Forbidden. What is not valid is not run in any case."""
        if operation is None:
            return
        known = documents.validated(self._schema.graphql, request.query)
        if known.errors:
            return
        refused = known.refused_fields.get(id(operation))
        if refused is None:
            refused = rights.refused_fields(self._schema.graphql, known.document, operation)
            known.refused_fields[id(operation)] = refused
        rights.require(caller, refused)

    async def _answer(
        self,
        request: GraphQLRequest,
        operation: OperationDefinitionNode | None,
        allowed: set[OperationType],
        caller: Caller,
    ) -> _Answer:
        """What is said of one look at the fleet is the same until the next."""
        work = partial(self._execute, request, allowed, caller)
        if operation is None or not _asks_of_the_fleet_alone(operation):
            return await work()
        look = self._services.fleet.current_look()
        if look is None:
            return await work()
        return await self._answers.get((_looks(request, operation, caller), look), work)

    async def _execute(
        self, request: GraphQLRequest, allowed: set[OperationType], caller: Caller
    ) -> _Answer:
        result = await self._schema.execute(
            request.query,
            variable_values=request.variables,
            context_value=self._services.context(caller),
            operation_name=request.operation_name,
            allowed_operation_types=allowed,
            operation_extensions=request.extensions,
        )
        return _answered(result)

    async def subscribe(self, request: GraphQLRequest, caller: Caller) -> AsyncGenerator[str, None]:
        """The encoded response to each event. Raises OperationRefused."""
        try:
            self._services.limits.request(caller)
            self._require_right(request, self._operation(request), caller)
        except RegistryError as error:
            raise OperationRefused(errors.refusal(error)) from error
        known = documents.validated(self._schema.graphql, request.query)
        if known.errors:
            raise OperationRefused(errors.as_response(known.errors))
        context = self._services.context(caller)
        executor = self._schema.execution_context_class.build(
            self._schema.graphql,
            known.document,
            context_value=context,
            raw_variable_values=request.variables,
            operation_name=request.operation_name,
            operation_extensions=request.extensions,
        )
        if isinstance(executor, list):
            raise OperationRefused(errors.as_response(executor))
        looks = _looks(request, executor.operation, caller)
        try:
            with self._services.limits.subscription(caller):
                source = await await_maybe(create_source_event_stream(executor))
                if isinstance(source, ExecutionResult):
                    raise OperationRefused(errors.as_response(source.errors or []))  # noqa: TRY301  # as the others
                assert isinstance(source, Batched)  # noqa: S101  # as all our resolvers make them
                async with aclosing(source.batches) as batches:
                    async for events in batches:
                        async for payload in self._payloads(executor, events, looks):
                            yield payload
        except OperationRefused:
            raise
        except Exception as error:  # whatever it is, it ends this stream alone
            broken = GraphQLError(str(error), original_error=error)
            raise OperationRefused(errors.as_response([broken])) from error

    async def _payloads(
        self, executor: "Executor[Any]", events: Sequence[object], looks: bytes
    ) -> AsyncGenerator[str, None]:
        # All are begun at once, so that what they ask the database is asked for all of them.
        executions = [
            self._shared.begin((looks, id(event)), partial(_tell, executor, event))
            for event in events
        ]
        for told, execution in enumerate(executions, start=1):
            done = execution.done()
            shared = execution.result() if done else await asyncio.shield(execution)
            yield shared.answer.payload
            if told % _TURN == 0:
                await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class _Shared:
    """Holds on to the event, so that its identity is nobody else's."""

    event: object
    answer: _Answer


async def _tell(executor: "Executor[Any]", event: object) -> _Shared:
    result = await await_maybe(execute_subscription_event(executor.build_per_event_executor(event)))
    return _Shared(event, _answered(result))


def _asks_of_the_fleet_alone(operation: OperationDefinitionNode) -> bool:
    return operation.operation is OperationKind.QUERY and all(
        isinstance(selection, FieldNode) and selection.name.value in _FLEET_FIELDS
        for selection in operation.selection_set.selections
    )


def _looks(request: GraphQLRequest, operation: OperationDefinitionNode, caller: Caller) -> bytes:
    """The same for all operations to which an event looks the same.

    A revision says where a stream begins, never what an event looks like. Nothing is told to one
    caller that another with the same rights would not be told.
    """
    given = request.variables or {}
    shown = {
        name: given[name]
        for definition in operation.variable_definitions or ()
        if (name := definition.variable.name.value) in given
        and _type_name(definition) != "Revision"
    }
    holds = [caller.identity.role, *sorted(caller.identity.nodes)]
    asked = [request.query, request.operation_name, shown, holds]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()


def _type_name(definition: VariableDefinitionNode) -> str | None:
    kind = definition.type.type if isinstance(definition.type, NonNullTypeNode) else definition.type
    return kind.name.value if isinstance(kind, NamedTypeNode) else None


def _answered(result: ExecutionResult | StrawberryResult) -> _Answer:
    """Raises OperationRefused when execution did not begin: without it there is no `data`."""
    if not result.errors:
        return _Answer(_encoded({"data": result.data}))
    shown = errors.as_response(result.errors)
    if result.data is None and not any(error.path for error in result.errors):
        raise OperationRefused(shown)
    return _Answer(_encoded({"data": result.data, "errors": shown}), has_errors=True)


def _encoded(payload: dict[str, Any]) -> str:
    return orjson.dumps(payload).decode()
