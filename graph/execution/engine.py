"""Runs operations on the schema for all transports."""

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from graphql import (
    ExecutionResult,
    Executor,
    GraphQLSyntaxError,
    OperationType,
    create_source_event_stream,
)
from strawberry.utils.await_maybe import await_maybe

from db.core.errors import Forbidden
from db.core.identity import Caller
from graph.api.context import create_context
from graph.api.schema import Schema
from graph.auth import permissions
from graph.core import errors
from graph.core.event_batches import EventBatches
from graph.core.single_flight import SingleFlight
from graph.execution.document_cache import DocumentCache, Operation
from graph.execution.event_sharing import (
    MAX_SHARED_BYTES,
    EncodedEvent,
    EventEncoder,
    EventView,
    compute_fingerprint,
    weigh,
)
from graph.execution.executor import TurnTakingExecutor
from graph.execution.forbidden_operation import record_forbidden
from graph.execution.query_limits import QueryLimits
from graph.execution.request import GraphQLRequest
from graph.execution.response import (
    OperationRejected,
    Response,
    reject_on_error,
    releasing,
    run_executor,
)
from graph.services import Services
from graph.telemetry.metrics import CANCELLED, OK

_EVENTS_PER_TURN = 32
"""Messages to one subscriber after which other tasks get their turn."""

_CHARACTERS_PER_TURN = 1024 * 1024

ALL_KINDS = frozenset(OperationType)


class KindNotAllowed(Exception):
    """An operation of a kind that its transport does not accept."""

    def __init__(self, kind: OperationType) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class _Admitted:
    """An operation that its caller may run."""

    operation: Operation
    request: GraphQLRequest
    caller: Caller

    def compute_fingerprint(self, *, same_for_all: bool = False) -> bytes:
        identity, variables = self.caller.identity, self.request.variables
        return compute_fingerprint(self.operation, variables, identity, same_for_all=same_for_all)


class Engine:
    """The one entry of all transports; one for each app.

    An event is executed and encoded once for all subscriptions to which it looks the same: those
    of one document, operation, variables and permissions. So is a query of fields that are cached
    by snapshot, until its next refresh.
    """

    def __init__(self, schema: Schema, services: Services, trusted: Iterable[str] = ()) -> None:
        """`trusted` are the documents that may be requested by their ids."""
        self._schema = schema
        self._services = services
        settings = services.settings
        self._hides_suggestions = not settings.is_schema_visible
        self._limits = QueryLimits.from_settings(settings)
        self._documents = DocumentCache(
            schema.graphql,
            trusted,
            max_tokens=settings.max_query_tokens,
            shows_schema=settings.is_schema_visible,
        )
        self._events = EventEncoder()
        self._responses: SingleFlight[tuple[bytes, int], Response] = SingleFlight(
            MAX_SHARED_BYTES, weigh=weigh
        )

    async def handle(
        self,
        request: GraphQLRequest,
        caller: Caller,
        allowed: Collection[OperationType] = ALL_KINDS,
    ) -> str | AsyncGenerator[str, None]:
        """Run a request: return the encoded response, or those of a subscription's events.

        Raises, before execution: KindNotAllowed, InvalidRequest, BadInput, RateLimited,
        QueryTooComplex, Forbidden (which the audit log then has), and OperationRejected for a
        document or variables that are not valid. Raises OperationTimedOut. The stream of a
        subscription raises OperationRejected alone, also for the limit of subscriptions.
        """
        admitted = await self._admit(request, caller, allowed)
        if admitted.operation.kind is OperationType.SUBSCRIPTION:
            return self._subscribe(admitted)
        return await self._respond(admitted)

    async def _admit(
        self, request: GraphQLRequest, caller: Caller, allowed: Collection[OperationType]
    ) -> _Admitted:
        self._services.caller_limits.charge_request(caller)
        try:
            document = self._documents.get_document(request)
        except GraphQLSyntaxError as error:
            raise OperationRejected(errors.format_errors([error])) from error
        operation = document.select_operation(request.operation_name)
        if operation.kind not in allowed:
            raise KindNotAllowed(operation.kind)
        if document.errors:
            raise OperationRejected(errors.format_errors(document.errors))
        try:
            permissions.require_role(caller, operation.forbidden_fields)
        except Forbidden:
            rejections = self._services.rejections
            await record_forbidden(rejections, caller, operation, request.variables)
            raise
        self._limits.check(operation.complexity, request.variables)
        return _Admitted(operation, request, caller)

    async def _respond(self, admitted: _Admitted) -> str:
        """Return the response to a query or mutation, within the time limit, and count it."""
        operation, limit_seconds = admitted.operation, self._services.settings.request_seconds
        began, outcome = time.perf_counter(), CANCELLED
        with self._services.tracer.open_span(*operation.span) as span:
            try:
                async with asyncio.timeout(limit_seconds):
                    response = await self._execute_shared(admitted)
                outcome = response.outcome
            except asyncio.CancelledError as error:
                errors.drop_tracebacks(error)
                raise
            except OperationRejected as error:
                outcome = error.code
                raise
            except TimeoutError as error:
                outcome = errors.OperationTimedOut.code
                raise errors.OperationTimedOut(limit_seconds) from error
            finally:
                if outcome not in {OK, CANCELLED}:
                    span.fail(outcome)
                self._services.metrics.observe_operation(
                    operation.metric_name,
                    operation.kind.value,
                    outcome,
                    time.perf_counter() - began,
                )
        return response.payload

    async def _execute_shared(self, admitted: _Admitted) -> Response:
        """Execute, once for all identical queries until the next refresh where that suffices."""
        execute = partial(self._execute, admitted)
        if admitted.operation.is_cached_by_snapshot:
            version = self._services.node_snapshot.get_version()
            if version is not None:
                key = admitted.compute_fingerprint(), version
                return await self._responses.get(key, execute)
        return await execute()

    async def _execute(self, admitted: _Admitted) -> Response:
        compiled = admitted.operation.compiled
        arguments = compiled.coerce(admitted.request.variables) if compiled else None
        with reject_on_error():
            if compiled and arguments is not None:
                context = create_context(self._services, admitted.caller)
                return Response.from_result(await compiled.run(arguments, context))
            executor = self._build_executor(admitted)
            result = await run_executor(executor, executor.execute_operation)
            return await Response.from_long_result(result)

    def _build_executor(self, admitted: _Admitted) -> "Executor[Any]":
        """Return a new executor. Raises OperationRejected for variables of wrong types."""
        executor = TurnTakingExecutor.build(
            self._schema.graphql,
            admitted.operation.document.node,
            context_value=create_context(self._services, admitted.caller),
            raw_variable_values=admitted.request.variables,
            operation_name=admitted.operation.name,
            hide_suggestions=self._hides_suggestions,
        )
        if isinstance(executor, list):
            raise OperationRejected(errors.format_errors(executor))
        return executor

    async def _subscribe(self, admitted: _Admitted) -> AsyncGenerator[str, None]:
        executor = self._build_executor(admitted)
        with (
            reject_on_error(),
            releasing(executor),
            self._services.caller_limits.hold_subscription(admitted.caller),
        ):
            source = await await_maybe(create_source_event_stream(executor))
            if isinstance(source, ExecutionResult):
                raise OperationRejected(errors.format_errors(source.errors or []))
            assert isinstance(source, EventBatches)  # noqa: S101  # as all our resolvers return
            fingerprint = admitted.compute_fingerprint(same_for_all=source.same_for_all)
            view = EventView(fingerprint, source.show, executor, admitted.operation.event_shape)
            count = characters = 0
            async with aclosing(source.batches) as batches:
                async for events in batches:
                    remaining = iter(events)
                    while started := self._start_encoding(view, remaining):
                        for encoding in started:
                            encoded = (
                                encoding
                                if isinstance(encoding, EncodedEvent)
                                else await asyncio.shield(encoding)
                            )
                            yield encoded.response.payload
                            count += 1
                            characters += len(encoded.response.payload)
                        if count >= _EVENTS_PER_TURN or characters >= _CHARACTERS_PER_TURN:
                            count = characters = 0
                            await asyncio.sleep(0)

    def _start_encoding(
        self, view: EventView, events: Iterator[Any]
    ) -> list[EncodedEvent | asyncio.Task[EncodedEvent]]:
        """Encode the next events, as many as do not hold the event loop.

        They are started together, so that their reads from the database are combined.
        """
        started: list[EncodedEvent | asyncio.Task[EncodedEvent]] = []
        characters = 0
        for event in islice(events, _EVENTS_PER_TURN):
            encoding = self._events.encode(view, event)
            started.append(encoding)
            if isinstance(encoding, EncodedEvent):
                characters += len(encoding.response.payload)
                if characters >= _CHARACTERS_PER_TURN:
                    break
        return started
