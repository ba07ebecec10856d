"""Follows nodes across all interruptions: each change of status once, in order, none skipped.

It keeps its place in memory alone: to go on after a restart, keep the `revision` of what was
handled last, and give it as `after`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import structlog

from agent import documents
from agent.errors import RegistryUnavailableError, RequestRejectedError, is_final
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
"""Followers are few beside agents, and what they show is old meanwhile."""

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
    """Each change behind the revision `after` of the nodes that match NodeFilter `node_filter`.

    Without `after` the first event is a Bookmark, and no change behind it is skipped: who reads
    the nodes then, and applies what follows, has them all. The same goes for ResyncRequired. Other
    Bookmarks come while nothing matches, so a stream that is silent for long may be stale.

    Connects again for ever. Raises RefusedError when that does not help, e.g. for a bad filter or
    token, and ValueError for a bad address, or files of `trust` that cannot be used. Close it with
    `aclose()`, or what it holds stays open.
    """
    position = after
    trusted = tls or TlsConfig()

    def open_stream(url: str) -> AsyncGenerator[StatusEvent, None]:
        return _stream_status_changes(url, token, trusted, node_filter, position)

    async with aclosing(_follow_with_reconnects(url, open_stream, clock or Clock())) as events:
        async for event in events:
            if _is_new(event, position or 0):
                yield event
                # A resync may lead back, where the log was set back.
                resync = isinstance(event, ResyncRequired)
                position = event.revision if resync else max(position or 0, event.revision)


async def follow_available_nodes(
    url: str,
    *,
    token: str | None = None,
    tls: TlsConfig | None = None,
    requirements: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
) -> AsyncGenerator[AvailableNodesEvent, None]:
    """The nodes that meet NodeRequirements `requirements`, then which enter and leave that set.

    The whole set comes first, and again after each interruption. Connects again for ever, and
    raises and is closed as `follow_status_changes`.
    """
    trusted = tls or TlsConfig()

    def open_stream(url: str) -> AsyncGenerator[AvailableNodesEvent, None]:
        return _stream_available_nodes(url, token, trusted, requirements)

    async with aclosing(_follow_with_reconnects(url, open_stream, clock or Clock())) as events:
        async for event in events:
            yield event


async def _follow_with_reconnects(
    url: str, open_stream: Callable[[str], AsyncGenerator[EventT, None]], clock: Clock
) -> AsyncGenerator[EventT, None]:
    """What one connection after another tells."""
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
        except (RegistryUnavailableError, RequestRejectedError) as error:
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
    """Ends behind ResyncRequired, else with an error."""
    async with open_websocket(url, token, tls) as transport:
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
    async with open_websocket(url, token, tls) as transport:
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
            return event.revision >= after  # equal: a sign of life
        case ResyncRequired():
            return True


def _log_failure(
    error: RegistryUnavailableError | RequestRejectedError,
    logged: str | None,
    url: str,
    failures: int,
    delay: float,
) -> str:
    """Logs what is new; returns what has been logged now, for the next call."""
    kind = error.code if isinstance(error, RequestRejectedError) else "away"
    (log.debug if kind == logged else log.warning)(
        "registry.refused" if isinstance(error, RequestRejectedError) else "registry.away",
        registry_url=url,
        reason=str(error),
        failures=failures,
        retry_in_seconds=round(delay, 1),
    )
    return kind
