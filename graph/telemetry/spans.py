"""Spans around units of work: the interface, and the tracer that records none.

`graph.tracing` has the tracer that sends spans by OTLP.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from starlette.types import ASGIApp

from db.core.database import Database

NO_ATTRIBUTES: Mapping[str, str] = {}


class Span(Protocol):
    """A unit of work that is being measured."""

    def fail(self, code: str) -> None:
        """Mark the work as failed, with the code of its error."""


class Tracer(Protocol):
    """Opens spans; one for each app."""

    def open_span(
        self,
        name: str,
        attributes: Mapping[str, str] = NO_ATTRIBUTES,
        links: Sequence[Any] = (),
    ) -> AbstractContextManager[Span]:
        """Return a context manager that measures its body within the current span."""

    def make_link(self) -> Any:
        """Return a link to the current span, for the span of work that serves several."""

    def trace_requests(self, app: ASGIApp) -> ASGIApp:
        """Return the app with a span around each HTTP request."""

    def trace_statements(self, database: Database) -> None:
        """Record a span for each SQL statement of the database's pool within another span."""


class _NoSpan:
    def fail(self, code: str) -> None:
        pass


class NoTracer:
    """Records nothing."""

    def __init__(self) -> None:
        self._span: AbstractContextManager[Span] = nullcontext(_NoSpan())

    def open_span(
        self,
        name: str,  # noqa: ARG002  # the interface's
        attributes: Mapping[str, str] = NO_ATTRIBUTES,  # noqa: ARG002  # the interface's
        links: Sequence[Any] = (),  # noqa: ARG002  # the interface's
    ) -> AbstractContextManager[Span]:
        return self._span

    def make_link(self) -> None:
        return None

    def trace_requests(self, app: ASGIApp) -> ASGIApp:
        return app

    def trace_statements(self, database: Database) -> None:
        pass
