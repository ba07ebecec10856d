"""Structured logs to standard error: JSON in production, for people in development."""

import logging
import sys
from typing import Literal

import structlog
from structlog.types import Processor

from db.core.token_format import redact_tokens

# Local variables hold what callers sent and what nobody should read; a large one takes seconds.
_FORMAT_WITHOUT_LOCALS = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)


def configure_logging(environment: Literal["development", "production"], level: str) -> None:
    """Sends our events and those of the libraries through one pipeline."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Processor] = (
        [
            structlog.processors.ExceptionRenderer(_FORMAT_WITHOUT_LOCALS),
            structlog.processors.JSONRenderer(),
        ]
        if environment == "production"
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        _RedactingFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Some of them would write down what is sent, keys included.
    for name in ("uvicorn", "alembic", "asyncio", "httpx", "httpcore", "websockets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


class _RedactingFormatter(structlog.stdlib.ProcessorFormatter):
    """Callers put them where they do not belong, and errors quote what they were given."""

    def format(self, record: logging.LogRecord) -> str:
        return redact_tokens(super().format(record))
