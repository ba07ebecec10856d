"""Runs operations on the schema: one result of a query or mutation, a stream of a subscription."""

import asyncio
import hashlib
import json
import time
from collections.abc import (
    AsyncGenerator,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager, suppress
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
    OperationType,
    VariableDefinitionNode,
    create_source_event_stream,
    execute_subscription_event,
)
from strawberry.utils.await_maybe import await_maybe

from db.errors import Forbidden
from db.identity import Caller
from graph import errors, rights
from graph.batched import Batched
from graph.documents import Documents, Operation
from graph.metrics import CANCELLED, OK
from graph.once import Once
from graph.refusals import record_forbidden
from graph.requests import GraphQLRequest
from graph.schema import Schema
from graph.services import Services
from graph.shapes import Shape

MAX_SHARED_BYTES = 32 * 1024 * 1024
"""Of results that are kept because other subscriptions may ask for them."""

_FLEET_FIELDS = {"availableNodes"}

_EVENT_BYTES = 2000  # about what the event and its task take, whatever was asked of it

_TURN = 32
"""Messages to one subscriber after which the others, and all else, have their turn."""


ALL_KINDS = frozenset(OperationType)


class KindNotAllowed(Exception):
    """Of what this way of asking is not for; `kind` is what it is."""

    def __init__(self, kind: OperationType) -> None:
        super().__init__(kind)
        self.kind = kind


class OperationRefused(Exception):
    """Not begun, or a stream that broke off; `errors` are as a response shows them."""

    def __init__(self, shown: list[dict[str, Any]]) -> None:
        super().__init__(shown)
        self.errors = shown

    @property
    def code(self) -> str:
        return _code(self.errors)


@dataclass(frozen=True, slots=True)
class _Answer:
    payload: str
    outcome: str = OK

    @property
    def weight(self) -> int:
        """Of one with errors too much to be kept: the next who asks may have more luck."""
        return len(self.payload) if self.outcome == OK else MAX_SHARED_BYTES + 1


@dataclass(frozen=True, slots=True)
class Admitted:
    """An operation that this caller may run."""

    operation: Operation
    request: GraphQLRequest
    caller: Caller

    @property
    def is_subscription(self) -> bool:
        return self.operation.kind is OperationType.SUBSCRIPTION


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
        self._shared: Once[tuple[bytes, int], _Shared] = Once(
            MAX_SHARED_BYTES, weigh=lambda shared: shared.answer.weight + _EVENT_BYTES
        )
        self._answers: Once[tuple[bytes, int], _Answer] = Once(
            MAX_SHARED_BYTES, weigh=lambda answer: answer.weight
        )

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
            rights.require(caller, operation.refused_fields)
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

    async def _answer(self, admitted: Admitted) -> _Answer:
        """What is said of one look at the fleet is the same until the next."""
        if not _asks_of_the_fleet_alone(admitted.operation.node):
            return await self._execute(admitted)
        look = self._services.fleet.current_look()
        if look is None:
            return await self._execute(admitted)
        work = partial(self._execute, admitted)
        return await self._answers.get((_looks(admitted), look), work)

    async def _execute(self, admitted: Admitted) -> _Answer:
        plan = admitted.operation.plan
        arguments = plan.arguments(admitted.request.variables) if plan else None
        with _faults_shown():
            if plan and arguments is not None:
                return _answered(await plan.run(arguments, self._services.context(admitted.caller)))
            result = await await_maybe(self._executor(admitted).execute_operation())
            assert isinstance(result, ExecutionResult)  # noqa: S101  # nothing is delivered in parts
            return _answered(result)

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
        with _faults_shown(), self._services.limits.subscription(admitted.caller):
            source = await await_maybe(create_source_event_stream(executor))
            if isinstance(source, ExecutionResult):
                raise OperationRefused(errors.as_response(source.errors or []))
            assert isinstance(source, Batched)  # noqa: S101  # as all our resolvers make them
            looks = _looks(admitted, alike=source.alike)
            tell = partial(self._tell, executor, admitted.operation.event_shape, looks)
            count = 0
            async with aclosing(source.batches) as batches:
                async for events in batches:
                    # All are begun at once, so that what they ask the database is asked for all.
                    for told in [tell(event) for event in events]:
                        shared = told if isinstance(told, _Shared) else await asyncio.shield(told)
                        yield shared.answer.payload
                        count += 1
                        if count % _TURN == 0:
                            await asyncio.sleep(0)

    def _tell(
        self, executor: "Executor[Any]", shape: Shape | None, looks: bytes, event: object
    ) -> "_Shared | asyncio.Task[_Shared]":
        """What others have been told already, or that needs nothing of the database, is at hand."""
        key = looks, id(event)
        shared = self._shared.kept(key)
        if shared is not None:
            return shared
        if shape is not None:
            with suppress(Exception):
                shared = _Shared(event, _Answer(_encoded({"data": shape(event)})))
                self._shared.keep(key, shared)
                return shared
        return self._shared.begin(key, partial(_executed, executor, event))


@dataclass(frozen=True, slots=True)
class _Shared:
    """Holds on to the event, so that its identity is nobody else's."""

    event: object
    answer: _Answer


async def _executed(executor: "Executor[Any]", event: object) -> _Shared:
    result = await await_maybe(execute_subscription_event(executor.build_per_event_executor(event)))
    return _Shared(event, _answered(result))


@contextmanager
def _faults_shown() -> Iterator[None]:
    """Whatever it is, it ends this operation alone."""
    try:
        yield
    except OperationRefused:
        raise
    except Exception as error:
        broken = GraphQLError(str(error), original_error=error)
        raise OperationRefused(errors.as_response([broken])) from error


def _asks_of_the_fleet_alone(operation: OperationDefinitionNode) -> bool:
    return operation.operation is OperationType.QUERY and all(
        isinstance(selection, FieldNode) and selection.name.value in _FLEET_FIELDS
        for selection in operation.selection_set.selections
    )


def _looks(admitted: Admitted, *, alike: bool = False) -> bytes:
    """The same for all operations to which an event looks the same; `alike`: whoever asks.

    A revision says where a stream begins, never what an event looks like. Nothing is told to one
    caller that another with the same rights would not be told.
    """
    operation, identity = admitted.operation, admitted.caller.identity
    given = admitted.request.variables or {}
    shown = {
        name: given[name]
        for definition in operation.node.variable_definitions or ()
        if (name := definition.variable.name.value) in given
        and _type_name(definition) != "Revision"
    }
    holds = None if alike else [identity.role, *sorted(identity.nodes)]
    asked = [operation.document.id, operation.name, shown, holds]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()


def _type_name(definition: VariableDefinitionNode) -> str | None:
    kind = definition.type.type if isinstance(definition.type, NonNullTypeNode) else definition.type
    return kind.name.value if isinstance(kind, NamedTypeNode) else None


def _answered(result: ExecutionResult) -> _Answer:
    """Raises OperationRefused when execution did not begin: without it there is no `data`."""
    if not result.errors:
        return _Answer(_encoded({"data": result.data}))
    shown = errors.as_response(result.errors)
    if result.data is None and not any(error.path for error in result.errors):
        raise OperationRefused(shown)
    return _Answer(_encoded({"data": result.data, "errors": shown}), _code(shown))


def _code(shown: Sequence[Mapping[str, Any]]) -> str:
    """That of the first."""
    code: str = shown[0]["extensions"]["code"]
    return code


def _encoded(payload: dict[str, Any]) -> str:
    return orjson.dumps(payload).decode()
