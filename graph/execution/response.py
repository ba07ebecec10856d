"""What execution gave, encoded as the response that says it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from graphql import ExecutionResult, Executor, GraphQLError
from strawberry.utils.await_maybe import await_maybe

from graph.core import errors
from graph.telemetry.metrics import OK


class OperationRefused(Exception):
    """Not begun, or a stream that broke off; `errors` are as a response shows them."""

    def __init__(self, shown: list[dict[str, Any]]) -> None:
        super().__init__(shown)
        self.errors = shown

    @property
    def code(self) -> str:
        return _code(self.errors)


@dataclass(frozen=True, slots=True)
class Answer:
    """`outcome` is OK or the code of the first error."""

    payload: str
    outcome: str = OK

    @classmethod
    def with_data(cls, data: Mapping[str, Any] | None) -> "Answer":
        return cls(_encoded({"data": data}))


def answer_of(result: ExecutionResult) -> Answer:
    """Raises OperationRefused when execution did not begin: without it there is no `data`."""
    if not result.errors:
        return Answer.with_data(result.data)
    shown = errors.as_response(result.errors)
    if result.data is None and not any(error.path for error in result.errors):
        raise OperationRefused(shown)
    return Answer(_encoded({"data": result.data, "errors": shown}), _code(shown))


async def executed(executor: "Executor[Any]", execute: Callable[[], Any]) -> ExecutionResult:
    """The whole result of what `execute` begins on the executor, which has done its work then."""
    with at_work(executor):
        result = await await_maybe(execute())
    assert isinstance(result, ExecutionResult)  # noqa: S101  # nothing is delivered in parts
    return result


@contextmanager
def at_work(executor: "Executor[Any]") -> Iterator[None]:
    """Afterwards nothing holds on to it but those who use it."""
    try:
        yield
    finally:
        # They hold the executor that holds them: only the collector would find the two.
        executor.async_helpers = None  # type: ignore[assignment]


@contextmanager
def faults_shown() -> Iterator[None]:
    """Whatever it is, it ends this operation alone: raises OperationRefused."""
    try:
        yield
    except OperationRefused:
        raise
    except Exception as error:
        broken = GraphQLError(str(error), original_error=error)
        raise OperationRefused(errors.as_response([broken])) from error


def _code(shown: Sequence[Mapping[str, Any]]) -> str:
    """That of the first."""
    code: str = shown[0]["extensions"]["code"]
    return code


def _encoded(payload: dict[str, Any]) -> str:
    return orjson.dumps(payload).decode()
