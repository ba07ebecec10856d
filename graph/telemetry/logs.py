"""Structured logs on standard error: JSON in production, readable lines in development."""

import logging
import sys
from typing import Literal

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from db.core.token_format import redact_tokens
from graph.core.terminal import escape, escape_lines
from graph.telemetry.log_bounds import shorten_fields
from graph.telemetry.log_rate import RateFilter

# Local variables hold requests and secrets, and a large one takes seconds to format.
_FORMAT_WITHOUT_LOCALS = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)


def configure_logging(environment: Literal["development", "production"], level: str) -> None:
    """Send the log events of the registry and of its libraries through one pipeline."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Processor] = (
        [
            structlog.processors.ExceptionRenderer(_FORMAT_WITHOUT_LOCALS),
            shorten_fields,
            structlog.processors.JSONRenderer(),
        ]
        if environment == "production"
        else [
            structlog.processors.format_exc_info,
            shorten_fields,
            escape_values,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    )
    handler = logging.StreamHandler()
    handler.addFilter(RateFilter())
    handler.setFormatter(
        _RedactingFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Below this level some of them log what is sent, tokens included.
    for name in ("uvicorn", "alembic", "asyncio", "httpx", "httpcore", "websockets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def escape_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape what a terminal would obey in the texts of an event; only a traceback has lines."""
    return {
        name: value
        if not isinstance(value, str)
        else escape_lines(value)
        if name == "exception"
        else escape(value)
        for name, value in event.items()
    }


class _RedactingFormatter(structlog.stdlib.ProcessorFormatter):
    """A formatter that redacts tokens, which callers put in wrong fields and errors then quote."""

    def format(self, record: logging.LogRecord) -> str:
        return redact_tokens(super().format(record))
