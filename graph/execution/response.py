"""Results of execution, encoded as GraphQL responses."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from graphql import ExecutionResult, Executor, GraphQLError
from strawberry.utils.await_maybe import await_maybe

from graph.core import errors
from graph.telemetry.metrics import OK


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
        return cls(_encode({"data": data}))

    @classmethod
    def from_result(cls, result: ExecutionResult) -> "Response":
        """Encode a result. Raises OperationRejected when execution did not begin: no data."""
        if not result.errors:
            return cls.from_data(result.data)
        formatted = errors.format_errors(result.errors)
        if result.data is None and not any(error.path for error in result.errors):
            raise OperationRejected(formatted)
        return cls(_encode({"data": result.data, "errors": formatted}), _first_code(formatted))


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


def _encode(payload: dict[str, Any]) -> str:
    return orjson.dumps(payload).decode()
