"""Traces of requests, from HTTP through GraphQL to SQL, sent by OTLP over HTTP.

Imported only where NODE_REGISTRY_OTLP_ENDPOINT is set: it needs the extra `otel`. SQLAlchemy's own
instrumentation is for versions before 2.1. Spans hold nothing that a caller sent: no headers, no
documents, no variables, no names but those of trusted documents, and of SQL the text alone.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from asyncpg.connection import LoggedQuery
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import get_contextvars

from db.core.database import Database
from db.registry.heartbeats import HeartbeatReport
from graph.core.version import SERVICE, VERSION
from graph.execution.engine import Admitted, Operations
from graph.execution.response import OperationRefused
from graph.live.heartbeat_writer import HeartbeatWriter, Outcome
from graph.telemetry.metrics import OK

_PATH = "/graphql"
_METHODS = {"GET", "POST"}
_SEND_SECONDS = 3
_MAX_STATEMENT_CHARACTERS = 4000
_MAX_LINKS = 128
_FAULT = 500
_PARENT = TraceContextTextMapPropagator()


class Tracing:
    """How many requests are traced is up to OpenTelemetry's own OTEL_TRACES_SAMPLER."""

    def __init__(self, endpoint: str, database: Database) -> None:
        """The endpoint is such as http://127.0.0.1:4318."""
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": SERVICE, "service.version": VERSION}),
            shutdown_on_exit=False,
        )
        self._exporter = OTLPSpanExporter(
            f"{endpoint.rstrip('/')}/v1/traces", timeout=_SEND_SECONDS
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("graph")
        _Statements(database, self._tracer)

    def operations(self, *given: Any) -> Operations:
        """As `Operations` of the same."""
        return TracedOperations(*given, tracer=self._tracer)

    def requests(self, graphql: ASGIApp) -> ASGIApp:
        return TracedRequests(graphql, self._tracer)

    def heartbeats(self, database: Database, *given: Any) -> HeartbeatWriter:
        """As `HeartbeatWriter` of the same, whose pool is one of its own."""
        _Statements(database, self._tracer)
        return TracedHeartbeats(database, *given, tracer=self._tracer)

    async def close(self) -> None:
        """Sends what is left; what cannot be sent within some seconds is lost."""
        loop = asyncio.get_running_loop()
        enough = loop.call_later(_SEND_SECONDS, self._exporter.shutdown)
        await asyncio.to_thread(self._provider.shutdown)
        enough.cancel()


class TracedRequests:
    """A span for each GraphQL request over HTTP, within the trace that its `traceparent` names.

    A websocket has none, for it may stay for days: each operation on it is a trace of its own.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "HTTP"
        with self._tracer.start_as_current_span(
            f"{method} {_PATH}",
            context=_PARENT.extract(Headers(scope=scope)),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": method,
                "http.route": _PATH,
                "url.scheme": scope["scheme"],
                "request.id": str(get_contextvars().get("request_id")),
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:

            async def send_on(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= _FAULT:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            await self._app(scope, receive, send_on)


class TracedOperations(Operations):
    """A span for each query and mutation that is run."""

    def __init__(self, *given: Any, tracer: Tracer) -> None:
        super().__init__(*given)
        self._tracer = tracer

    async def _answer(self, admitted: Admitted) -> Any:
        operation = admitted.operation
        kind = operation.kind.value
        with self._tracer.start_as_current_span(
            f"{kind} {operation.counted_as}",
            attributes={
                "graphql.operation.type": kind,
                "graphql.operation.name": operation.counted_as,
                "graphql.document.id": operation.document.id,
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                answer = await super()._answer(admitted)
            except OperationRefused as refused:
                _failed(span, refused.code)
                raise
            if answer.outcome != OK:
                _failed(span, answer.outcome)
            return answer


class TracedHeartbeats(HeartbeatWriter):
    """A trace for each batch, with links to the operations whose heartbeats are in it."""

    def __init__(self, *given: Any, tracer: Tracer) -> None:
        super().__init__(*given)
        self._tracer = tracer
        self._asking: deque[Link] = deque(maxlen=_MAX_LINKS)

    async def record(self, reports: Sequence[HeartbeatReport]) -> list[Outcome]:
        self._asking.append(Link(get_current_span().get_span_context()))
        return await super().record(reports)

    async def _write(self, batch: list[Any]) -> None:
        links = list(self._asking)
        self._asking.clear()
        with self._tracer.start_as_current_span(
            "heartbeats.write", links=links, record_exception=False, set_status_on_exception=False
        ):
            await super()._write(batch)


class _Statements:
    """Those within a span: all others, of background work, would be traces of one span each."""

    def __init__(self, database: Database, tracer: Tracer) -> None:
        self._database = database.url.database or ""
        self._tracer = tracer
        engine = database.engine.sync_engine
        event.listen(engine, "before_cursor_execute", self._begin)
        event.listen(engine, "after_cursor_execute", self._end)
        event.listen(engine, "handle_error", self._fail)
        event.listen(engine, "checkout", self._taken)  # some are older than this

    def _begin(self, _c: object, _cursor: object, statement: str, _: object, *more: Any) -> None:
        if get_current_span().is_recording():
            more[0].span = self._span(statement)

    def _end(self, _c: object, _cursor: object, _statement: str, _: object, *more: Any) -> None:
        span = getattr(more[0], "span", None)
        if span is not None:
            span.end()

    def _fail(self, failure: ExceptionContext) -> None:
        span = getattr(failure.execution_context, "span", None)
        if span is not None:
            _failed(span, type(failure.original_exception).__name__)
            span.end()

    def _taken(self, connection: Any, *_: object) -> None:
        connection.driver_connection.add_query_logger(self._executed)

    def _executed(self, query: LoggedQuery) -> None:
        """By the driver itself, as are the ends of transactions; the span around it may be over."""
        if not get_current_span().get_span_context().trace_flags.sampled:
            return
        now = time.time_ns()
        span = self._span(query.query, since=now - round(query.elapsed * 1e9))
        if query.exception is not None:
            _failed(span, type(query.exception).__name__)
        span.end(now)

    def _span(self, statement: str, since: int | None = None) -> Span:
        return self._tracer.start_span(
            statement.split(maxsplit=1)[0].strip(";").upper(),
            kind=SpanKind.CLIENT,
            attributes={
                "db.system.name": "postgresql",
                "db.namespace": self._database,
                "db.query.text": statement.strip()[:_MAX_STATEMENT_CHARACTERS],
            },
            start_time=since,
            record_exception=False,
        )


def _failed(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)
