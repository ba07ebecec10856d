"""Traces of requests, from HTTP through GraphQL to SQL, sent by OTLP over HTTP.

Imported only where NODE_REGISTRY_OTLP_ENDPOINT is set: it needs the extra `otel`. SQLAlchemy's own
instrumentation is for versions before 2.1. Spans hold nothing that a caller sent: no headers, no
documents, no variables, no names except those of trusted documents, and of SQL the text alone.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from io import BytesIO
from typing import Any

import requests
from asyncpg.connection import LoggedQuery
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, StatusCode, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from requests.adapters import HTTPAdapter
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import get_contextvars
from urllib3 import HTTPResponse

from db.core.database import Database
from graph.core.headers import get_header
from graph.core.version import SERVICE_NAME, VERSION
from graph.telemetry.spans import NO_ATTRIBUTES

_PATH = "/graphql"
_METHODS = {"GET", "POST"}
_SEND_SECONDS = 3
_MAX_ANSWER_BYTES = 1024
_MAX_STATEMENT_CHARACTERS = 4000
_SERVER_ERROR = 500
_PARENT = TraceContextTextMapPropagator()


class OTLPTracer:
    """A tracer that sends spans; OpenTelemetry's OTEL_TRACES_SAMPLER sets how many."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is a base URL such as http://127.0.0.1:4318."""
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": SERVICE_NAME, "service.version": VERSION}),
            shutdown_on_exit=False,
        )
        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, _BoundedAdapter())
        self._exporter = OTLPSpanExporter(
            f"{endpoint.rstrip('/')}/v1/traces", timeout=_SEND_SECONDS, session=session
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("graph")

    @contextmanager
    def open_span(
        self,
        name: str,
        attributes: Mapping[str, str] = NO_ATTRIBUTES,
        links: Sequence[Link] = (),
    ) -> Iterator["OTLPSpan"]:
        with self._tracer.start_as_current_span(
            name,
            attributes=attributes,
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield OTLPSpan(span)

    def make_link(self) -> Link:
        return Link(get_current_span().get_span_context())

    def trace_requests(self, app: ASGIApp) -> ASGIApp:
        return TracedRequests(app, self._tracer)

    def trace_statements(self, database: Database) -> None:
        _StatementSpans(database, self._tracer)

    async def close(self) -> None:
        """Send the waiting spans; those not sent within _SEND_SECONDS are lost."""
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(_SEND_SECONDS, self._exporter.shutdown)
        await asyncio.to_thread(self._provider.shutdown)
        deadline.cancel()


class _BoundedAdapter(HTTPAdapter):
    """Reads no more than the beginning of an answer, which the exporter logs if it is an error."""

    def send(self, *arguments: Any, **options: Any) -> requests.Response:
        response = super().send(*arguments, **options)
        with closing(response.raw) as sent:
            beginning = sent.read(_MAX_ANSWER_BYTES, decode_content=False)
        response.raw = HTTPResponse(BytesIO(beginning), preload_content=False)
        return response


class OTLPSpan:
    """A span of OpenTelemetry behind the interface of `graph.telemetry.spans`."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def fail(self, code: str) -> None:
        _mark_failed(self._span, code)


class TracedRequests:
    """Middleware that records a span for each GraphQL request over HTTP.

    The span belongs to the trace that the `traceparent` header names (W3C Trace Context). A
    websocket has none because it may stay open for days: each operation on it is a trace of its
    own.
    """

    def __init__(self, app: ASGIApp, tracer: trace.Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "HTTP"
        with self._tracer.start_as_current_span(
            f"{method} {_PATH}",
            # Not `tracestate`, which would be sent with the spans and may hold any text.
            context=_PARENT.extract({"traceparent": get_header(scope, b"traceparent") or ""}),
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

            async def send_and_record(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= _SERVER_ERROR:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            await self._app(scope, receive, send_and_record)


class _StatementSpans:
    """Records a span of each statement within another span.

    Without that limit each statement of background work would be a trace of its own.
    """

    def __init__(self, database: Database, tracer: trace.Tracer) -> None:
        self._database = database.url.database or ""
        self._tracer = tracer
        engine = database.engine.sync_engine
        event.listen(engine, "before_cursor_execute", self._begin)
        event.listen(engine, "after_cursor_execute", self._end)
        event.listen(engine, "handle_error", self._fail)
        event.listen(engine, "checkout", self._watch)  # some connections are older than this

    def _begin(self, _c: object, _cursor: object, statement: str, _: object, *more: Any) -> None:
        if get_current_span().is_recording():
            more[0].span = self._start(statement)

    def _end(self, _c: object, _cursor: object, _statement: str, _: object, *more: Any) -> None:
        span = getattr(more[0], "span", None)
        if span is not None:
            span.end()

    def _fail(self, failure: ExceptionContext) -> None:
        span = getattr(failure.execution_context, "span", None)
        if span is not None:
            _mark_failed(span, type(failure.original_exception).__name__)
            span.end()

    def _watch(self, connection: Any, *_: object) -> None:
        connection.driver_connection.add_query_logger(self._record)

    def _record(self, query: LoggedQuery) -> None:
        """Record a statement that the driver ran itself, such as COMMIT, as a span of its own."""
        if not get_current_span().get_span_context().trace_flags.sampled:
            return
        now = time.time_ns()
        span = self._start(query.query, since=now - round(query.elapsed * 1e9))
        if query.exception is not None:
            _mark_failed(span, type(query.exception).__name__)
        span.end(now)

    def _start(self, statement: str, since: int | None = None) -> trace.Span:
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


def _mark_failed(span: trace.Span, code: str) -> None:
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)
