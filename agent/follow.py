"""Subscriptions that reconnect by themselves: each status change once, in order, none skipped.

The position is kept only in memory. To continue after a restart, store the `revision` of the last
event that was handled and pass it as `after`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import structlog

from agent import documents
from agent.bounded_answer import MAX_PAGE_BYTES
from agent.errors import RegistryError, RequestRejectedError, is_final
from agent.http_transport import TIMEOUT_SECONDS
from agent.pace import Clock, draw_retry_delay
from agent.replies import (
    AvailableNodesChangesData,
    AvailableNodesEvent,
    Bookmark,
    NodeStatusChanged,
    NodeStatusChangesData,
    ResyncRequired,
    RevisionData,
    StatusEvent,
)
from agent.settings import parse_graphql_url
from agent.tls import TlsConfig
from agent.websocket import open_websocket, parse_result, subscribe

EventT = TypeVar("EventT")

MAX_BACKOFF_SECONDS = 10.0
"""Shorter than an agent's: followers are few, and what they show is outdated in the meantime."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


async def follow_status_changes(
    url: str,
    *,
    token: str | None = None,
    tls: TlsConfig | None = None,
    node_filter: Mapping[str, Any] | None = None,
    after: int | None = None,
    clock: Clock | None = None,
) -> AsyncGenerator[StatusEvent, None]:
    """Yield each status change after the revision `after` of the nodes that match `node_filter`.

    `node_filter` holds the fields of the schema's NodeFilter. Without `after` the first event is a
    Bookmark: read the nodes after it and apply the changes that follow, and none is missed. The
    same applies after ResyncRequired. Further Bookmarks come while nothing matches, so a stream
    that is silent for long may be stale.

    The stream reconnects without limit. Close it with `aclose()`; until then its connection stays
    open.

    Raises: RequestRejectedError: a retry cannot help, e.g. the filter or the token is invalid.
    ValueError: the address is invalid, or a file of `tls` cannot be used.
    """
    position = after
    tls_config = tls or TlsConfig()

    def open_stream(url: str) -> AsyncGenerator[StatusEvent, None]:
        return _stream_status_changes(url, token, tls_config, node_filter, position)

    async with aclosing(_follow_with_reconnects(url, open_stream, clock or Clock())) as events:
        async for event in events:
            if _is_new(event, position or 0):
                yield event
                # A resync may move the position back: the change log may have been reset.
                is_resync = isinstance(event, ResyncRequired)
                position = event.revision if is_resync else max(position or 0, event.revision)


async def follow_available_nodes(
    url: str,
    *,
    token: str | None = None,
    tls: TlsConfig | None = None,
    requirements: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
) -> AsyncGenerator[AvailableNodesEvent, None]:
    """Yield the nodes that meet `requirements`, then each node that enters or leaves that set.

    `requirements` holds the fields of the schema's NodeRequirements. The whole set comes first,
    and again after each interruption. The stream reconnects without limit. Close it with
    `aclose()`; until then its connection stays open.

    Raises: RequestRejectedError: a retry cannot help, e.g. the requirements or the token are
    invalid. ValueError: the address is invalid, or a file of `tls` cannot be used.
    """
    tls_config = tls or TlsConfig()

    def open_stream(url: str) -> AsyncGenerator[AvailableNodesEvent, None]:
        return _stream_available_nodes(url, token, tls_config, requirements)

    async with aclosing(_follow_with_reconnects(url, open_stream, clock or Clock())) as events:
        async for event in events:
            yield event


async def _follow_with_reconnects(
    url: str, open_stream: Callable[[str], AsyncGenerator[EventT, None]], clock: Clock
) -> AsyncGenerator[EventT, None]:
    """Yield the events of one connection after another."""
    url = parse_graphql_url(url)
    failures, logged = 0, None
    while True:
        try:
            async with aclosing(open_stream(url)) as events:
                async for event in events:
                    if failures:
                        log.info("registry.recovered", registry_url=url, failures=failures)
                    failures, logged = 0, None
                    yield event
        except RegistryError as error:
            if isinstance(error, RequestRejectedError) and is_final(error):
                raise
            failures += 1
            delay = draw_retry_delay(
                failures,
                interval_seconds=0.0,
                at_least_seconds=error.retry_after_seconds,
                uniform=clock.uniform,
                cap_seconds=MAX_BACKOFF_SECONDS,
            )
            logged = _log_failure(error, logged, url, failures, delay)
            await clock.wait(delay)


async def _stream_status_changes(
    url: str,
    token: str | None,
    tls: TlsConfig,
    node_filter: Mapping[str, Any] | None,
    after: int | None,
) -> AsyncGenerator[StatusEvent, None]:
    """Yield the changes of one connection, which ends after ResyncRequired or with an error."""
    async with open_websocket(url, token, tls, max_bytes=MAX_PAGE_BYTES) as transport:
        if after is None:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                result = await transport.execute(documents.REVISION)
            after = parse_result(result, RevisionData).registry.revision
            yield Bookmark(revision=after)
        variables = {"filter": node_filter, "after": str(after)}
        results = subscribe(transport, documents.STATUS_CHANGES, variables, NodeStatusChangesData)
        async with aclosing(results) as replies:
            async for reply in replies:
                yield reply.node_status_changes
                if isinstance(reply.node_status_changes, ResyncRequired):
                    return


async def _stream_available_nodes(
    url: str, token: str | None, tls: TlsConfig, requirements: Mapping[str, Any] | None
) -> AsyncGenerator[AvailableNodesEvent, None]:
    async with open_websocket(url, token, tls, max_bytes=MAX_PAGE_BYTES) as transport:
        variables = {"require": requirements}
        results = subscribe(transport, documents.AVAILABILITY, variables, AvailableNodesChangesData)
        async with aclosing(results) as replies:
            async for reply in replies:
                yield reply.available_nodes_changes


def _is_new(event: StatusEvent, after: int) -> bool:
    match event:
        case NodeStatusChanged():
            return event.revision > after
        case Bookmark():
            return event.revision >= after  # an equal revision shows that the stream is alive
        case ResyncRequired():
            return True


def _log_failure(
    error: RegistryError,
    logged: str | None,
    url: str,
    failures: int,
    delay: float,
) -> str:
    """Log a failure, of a kind already logged at debug level, and return its kind.

    Pass the returned kind as `logged` to the next call.
    """
    kind = error.code if isinstance(error, RequestRejectedError) else "unavailable"
    (log.debug if kind == logged else log.warning)(
        "request.rejected" if isinstance(error, RequestRejectedError) else "request.failed",
        registry_url=url,
        reason=str(error),
        failures=failures,
        retry_in_seconds=round(delay, 1),
    )
    return kind
