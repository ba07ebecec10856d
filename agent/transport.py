"""The agent's way to the registry: one websocket, or HTTP where something between breaks those."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import structlog
from gql import GraphQLRequest

from agent import documents
from agent.client import (
    TIMEOUT_SECONDS,
    Connection,
    RefusedError,
    RegistryAwayError,
    ReplyT,
    RestartingError,
    http_transport,
)
from agent.pace import Clock
from agent.replies import HeartbeatPaceData
from agent.tls import Trust
from agent.websocket import (
    PING_SECONDS,
    Transport,
    UnopenedError,
    connected,
    named_failures,
    read,
    subscribed,
)

# A heartbeat that has to go over HTTP after all must not come too late for the grace.
OPEN_SECONDS = 3.0
# How long HTTP is used, about, before the websocket is tried again.
HTTP_SECONDS = 600.0
# Who says goodbye is back by then, as a rule.
RESTART_SECONDS = 30.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Link:
    """For one request at a time, as `Connection`, and as that it retries nothing.

    The websocket is opened for the first request, and anew for the first one after it was lost:
    when a registry restarts, its agents come back one by one, as their heartbeats fall due.
    `hear_pace` is told the registry's pace whenever it changes, in seconds; over HTTP it is not.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        trust: Trust,
        *,
        clock: Clock,
        hear_pace: Callable[[float], None],
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._url = url
        self._token = token
        self._trust = trust
        self._clock = clock
        self._hear_pace = hear_pace
        self._timeout_seconds = timeout_seconds
        self._http = Connection(
            http_transport(url, token, trust=trust), timeout_seconds=timeout_seconds
        )
        self._http_until: float | None = None
        """None while websockets are not known to fail."""
        self._back_by = clock.now()
        self._transport: Transport | None = None
        self._slept_before = 0.0
        self._closing = AsyncExitStack()

    async def ask(
        self, document: GraphQLRequest, variables: dict[str, Any], reply: type[ReplyT]
    ) -> ReplyT:
        """Raises as `Connection.ask`, and RestartingError for a while after a goodbye."""
        if self._http_until is not None and self._clock.now() < self._http_until:
            return await self._http.ask(document, variables, reply)
        try:
            return await self._ask_by_websocket(document, variables, reply)
        except UnopenedError as error:
            return await self._ask_by_http(error, document, variables, reply)
        except RestartingError:
            await self._close_websocket()
            self._back_by = self._clock.now() + RESTART_SECONDS
            raise
        except RegistryAwayError as error:
            await self._close_websocket()
            if self._clock.now() < self._back_by:
                raise RestartingError(error.reason, error.retry_after_seconds) from None
            raise

    async def aclose(self) -> None:
        await self._close_websocket()
        await self._http.aclose()

    async def _ask_by_websocket(
        self, document: GraphQLRequest, variables: dict[str, Any], reply: type[ReplyT]
    ) -> ReplyT:
        request = GraphQLRequest(document, variable_values=variables)
        transport = await self._connected()
        with named_failures(self._timeout_seconds):
            async with asyncio.timeout(self._timeout_seconds):
                result = await transport.execute(request)
        return read(result, reply)

    async def _ask_by_http(
        self,
        broken: UnopenedError,
        document: GraphQLRequest,
        variables: dict[str, Any],
        reply: type[ReplyT],
    ) -> ReplyT:
        """What is answered here, though no websocket opens, tells where the fault is."""
        try:
            answer = await self._http.ask(document, variables, reply)
        except RefusedError:
            self._use_http(broken)
            raise
        self._use_http(broken)
        return answer

    def _use_http(self, broken: UnopenedError) -> None:
        seconds = self._clock.uniform(HTTP_SECONDS / 2, HTTP_SECONDS * 3 / 2)
        (log.warning if self._http_until is None else log.debug)(
            "websocket.broken",
            registry_url=self._url,
            reason=broken.reason,
            instead="http",
            retry_in_seconds=round(seconds),
        )
        self._http_until = self._clock.now() + seconds

    async def _connected(self) -> Transport:
        if self._transport is not None:
            # A machine that slept answered no pings: the registry has cut the connection since.
            slept_seconds = self._seconds_slept() - self._slept_before
            if self._transport.alive and slept_seconds < PING_SECONDS:
                return self._transport
            await self._close_websocket()
        transport = await self._closing.enter_async_context(
            connected(self._url, self._token, self._trust, open_seconds=OPEN_SECONDS)
        )
        self._transport, self._slept_before = transport, self._seconds_slept()
        following = asyncio.create_task(self._follow_pace(transport))
        self._closing.callback(following.cancel)
        if self._http_until is not None:
            self._http_until = None
            log.info("websocket.works", registry_url=self._url)
            await self._http.aclose()
        return transport

    def _seconds_slept(self) -> float:
        """Since some moment: the loop's own clock stands still while the machine sleeps."""
        return self._clock.now() - asyncio.get_running_loop().time()

    async def _follow_pace(self, transport: Transport) -> None:
        """An older registry, or one that is busy, tells none: replies tell it, too."""
        try:
            with named_failures():
                paces = subscribed(transport, documents.HEARTBEAT_PACE, {}, HeartbeatPaceData)
                async with aclosing(paces) as told:
                    async for pace in told:
                        self._hear_pace(pace.heartbeat_pace.interval_seconds)
        except RestartingError:
            self._back_by = self._clock.now() + RESTART_SECONDS
        except (RegistryAwayError, RefusedError) as error:
            log.debug("pace.untold", reason=str(error))

    async def _close_websocket(self) -> None:
        self._transport = None
        await self._closing.aclose()
