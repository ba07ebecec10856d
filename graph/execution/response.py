"""Results of execution, encoded as GraphQL responses."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from graphql import ExecutionResult, Executor, GraphQLError
from strawberry.utils.await_maybe import await_maybe

from db.core.turns import Steps, take_turns
from graph.core import errors
from graph.execution.query_limits import QueryTooComplex
from graph.telemetry.metrics import OK

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
"""Of a response that the executor made; a page of 1,000 nodes has some 600 kB."""

_LEVELS_OF_PARTS = 4
"""`data`, its fields, the lists in these, and the items."""


class OperationRejected(Exception):
    """An operation that did not begin, or a stream that broke off.

    `errors` are in the form of a response.
    """

    def __init__(self, formatted: list[dict[str, Any]]) -> None:
        super().__init__(formatted)
        self.errors = formatted

    @property
    def code(self) -> str:
        return _first_code(self.errors)


@dataclass(frozen=True, slots=True)
class Response:
    """An encoded response. `outcome` is OK or the code of its first error."""

    payload: str
    outcome: str = OK

    @classmethod
    def from_data(cls, data: Mapping[str, Any] | None) -> "Response":
        return cls(orjson.dumps({"data": data}).decode())

    @classmethod
    def from_result(cls, result: ExecutionResult) -> "Response":
        """Encode a result. Raises OperationRejected when execution did not begin: no data."""
        payload, outcome = _make_payload(result)
        return cls(orjson.dumps(payload).decode(), outcome)

    @classmethod
    async def from_long_result(cls, result: ExecutionResult) -> "Response":
        """Encode a result in turns with other work.

        Raises OperationRejected when execution did not begin: no data. Raises QueryTooComplex for
        more than MAX_RESPONSE_BYTES.
        """
        payload, outcome = _make_payload(result)
        return cls(await take_turns(_encode(payload)), outcome)


def _make_payload(result: ExecutionResult) -> tuple[dict[str, Any], str]:
    """Return the response and its outcome."""
    if not result.errors:
        return {"data": result.data}, OK
    formatted = errors.format_errors(result.errors)
    if result.data is None and not any(error.path for error in result.errors):
        raise OperationRejected(formatted)
    return {"data": result.data, "errors": formatted}, _first_code(formatted)


async def run_executor(executor: "Executor[Any]", execute: Callable[[], Any]) -> ExecutionResult:
    """Return the whole result of what `execute` begins on the executor, and release it."""
    with releasing(executor):
        result = await await_maybe(execute())
    assert isinstance(result, ExecutionResult)  # noqa: S101  # nothing is delivered in parts
    return result


@contextmanager
def releasing(executor: "Executor[Any]") -> Iterator[None]:
    """Break the executor's reference cycle afterwards, so that it needs no garbage collection."""
    try:
        yield
    finally:
        executor.async_helpers = None  # type: ignore[assignment]  # they hold the executor that holds them


@contextmanager
def reject_on_error() -> Iterator[None]:
    """Turn any error into OperationRejected, so that it ends this operation alone."""
    try:
        yield
    except OperationRejected:
        raise
    except Exception as error:
        wrapped = GraphQLError(str(error), original_error=error)
        raise OperationRejected(errors.format_errors([wrapped])) from error


def _first_code(formatted: Sequence[Mapping[str, Any]]) -> str:
    code: str = formatted[0]["extensions"]["code"]
    return code


def _encode(payload: Mapping[str, Any]) -> Steps[str]:
    """Return the payload as JSON, encoded in parts: items of its lists, which can be large."""
    parts: list[bytes] = []
    size = 0
    for part in _iterate_parts(payload, _LEVELS_OF_PARTS):
        parts.append(part)
        size += len(part)
        if size > MAX_RESPONSE_BYTES:
            raise QueryTooComplex("size", size, MAX_RESPONSE_BYTES)
        yield
    return b"".join(parts).decode()


def _iterate_parts(value: Any, levels: int) -> Iterator[bytes]:
    if levels and value and isinstance(value, dict):
        before = b"{"
        for key, member in value.items():
            yield before + orjson.dumps(key) + b":"
            yield from _iterate_parts(member, levels - 1)
            before = b","
        yield b"}"
    elif levels and value and isinstance(value, list):
        before = b"["
        for item in value:
            yield before
            yield from _iterate_parts(item, levels - 1)
            before = b","
        yield b"]"
    else:
        yield orjson.dumps(value)
