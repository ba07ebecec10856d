"""Log events on stderr: readable text on a terminal, else one JSON object per line."""

import logging
import sys

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from agent.terminal import escape, escape_lines


def configure_logs(*, verbose: bool) -> None:
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Processor] = [structlog.processors.JSONRenderer()]  # in ASCII
    if sys.stderr.isatty():
        render = [
            structlog.processors.format_exc_info,
            escape_values,
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ]
    # Write through logging, because its handler survives a full disk or a closed stderr.
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(handlers=[handler], level=level, force=True)
    # Some of these would log what is sent, tokens included.
    for chatty in ("asyncio", "gql", "httpx", "httpcore", "websockets"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
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
