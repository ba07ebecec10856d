"""The agent's transport to the registry: a websocket, or HTTP where websockets are blocked."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any, Protocol

import structlog
from gql import GraphQLRequest

from agent import documents
from agent.errors import (
    RegistryError,
    RegistryRestartingError,
    RegistryUnavailableError,
    RequestRejectedError,
)
from agent.http_transport import TIMEOUT_SECONDS, HttpTransport
from agent.pace import Clock
from agent.replies import HeartbeatPaceData, ReplyT
from agent.tls import TlsConfig
from agent.websocket import (
    PING_SECONDS,
    BoundedWebsocketsTransport,
    WebSocketOpenError,
    open_websocket,
    parse_result,
    subscribe,
    translated_errors,
)

# A heartbeat that falls back to HTTP must still arrive within the grace.
OPEN_TIMEOUT_SECONDS = 3.0
# The mean time for which HTTP is used before the websocket is tried again.
HTTP_SECONDS = 600.0
# The time within which a registry that announced its restart is usually back.
RESTART_SECONDS = 30.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class RegistryTransport(Protocol):
    """A connection that sends requests to the registry one at a time, without retries."""

    async def execute(
        self, document: GraphQLRequest, variables: dict[str, Any], reply_type: type[ReplyT]
    ) -> ReplyT:
        """Send the document and return its data as `reply_type`.

        Raises: RequestRejectedError: the registry answered with an error.
        RegistryUnavailableError: no usable answer came in time.
        """

    async def aclose(self) -> None:
        """Close what is open. The transport may be used again."""


class FallbackTransport:
    """A transport that uses a websocket, and HTTP for a while when no websocket can be opened.

    It carries one request at a time. The websocket is opened for the first request, and again for
    the first one after it was lost: when a registry restarts, its agents return one by one, as
    their heartbeats become due. `on_pace` is called with the registry's pace in seconds whenever
    it changes, but not over HTTP.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        tls: TlsConfig,
        *,
        clock: Clock,
        on_pace: Callable[[float], None],
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._url = url
        self._token = token
        self._tls = tls
        self._clock = clock
        self._on_pace = on_pace
        self._timeout_seconds = timeout_seconds
        self._http = HttpTransport(url, token, tls=tls, timeout_seconds=timeout_seconds)
        self._http_until: float | None = None
        """None as long as no websocket has failed to open."""
        self._restart_deadline = clock.now()
        self._websocket: BoundedWebsocketsTransport | None = None
        self._slept_before = 0.0
        self._closing = AsyncExitStack()

    async def execute(
        self, document: GraphQLRequest, variables: dict[str, Any], reply_type: type[ReplyT]
    ) -> ReplyT:
        """Send the document as `RegistryTransport.execute` does.

        For a while after the registry announced a restart, it raises RegistryRestartingError
        instead of RegistryUnavailableError.
        """
        if self._http_until is not None and self._clock.now() < self._http_until:
            return await self._http.execute(document, variables, reply_type)
        try:
            return await self._execute_over_websocket(document, variables, reply_type)
        except WebSocketOpenError as error:
            return await self._execute_over_http(error, document, variables, reply_type)
        except RegistryRestartingError:
            await self._close_websocket()
            self._restart_deadline = self._clock.now() + RESTART_SECONDS
            raise
        except RegistryUnavailableError as error:
            await self._close_websocket()
            if self._clock.now() < self._restart_deadline:
                raise RegistryRestartingError(error.reason, error.retry_after_seconds) from None
            raise

    async def aclose(self) -> None:
        await self._close_websocket()
        await self._http.aclose()

    async def _execute_over_websocket(
        self, document: GraphQLRequest, variables: dict[str, Any], reply_type: type[ReplyT]
    ) -> ReplyT:
        request = GraphQLRequest(document, variable_values=variables)
        websocket = await self._open_websocket()
        with translated_errors(self._timeout_seconds):
            async with asyncio.timeout(self._timeout_seconds):
                result = await websocket.execute(request)
        return parse_result(result, reply_type)

    async def _execute_over_http(
        self,
        cause: WebSocketOpenError,
        document: GraphQLRequest,
        variables: dict[str, Any],
        reply_type: type[ReplyT],
    ) -> ReplyT:
        """Send the document over HTTP, and keep using HTTP if the registry answers there."""
        try:
            answer = await self._http.execute(document, variables, reply_type)
        except RequestRejectedError:
            self._use_http(cause)
            raise
        self._use_http(cause)
        return answer

    def _use_http(self, cause: WebSocketOpenError) -> None:
        seconds = self._clock.uniform(HTTP_SECONDS / 2, HTTP_SECONDS * 3 / 2)
        (log.warning if self._http_until is None else log.debug)(
            "websocket.failed",
            registry_url=self._url,
            reason=cause.reason,
            fallback="http",
            retry_in_seconds=round(seconds),
        )
        self._http_until = self._clock.now() + seconds

    async def _open_websocket(self) -> BoundedWebsocketsTransport:
        if self._websocket is not None:
            # A machine that slept answered no pings, so the registry has closed the connection.
            slept_seconds = self._measure_sleep() - self._slept_before
            if self._websocket.is_alive and slept_seconds < PING_SECONDS:
                return self._websocket
            await self._close_websocket()
        websocket = await self._closing.enter_async_context(
            open_websocket(self._url, self._token, self._tls, open_seconds=OPEN_TIMEOUT_SECONDS)
        )
        self._websocket, self._slept_before = websocket, self._measure_sleep()
        pace_task = asyncio.create_task(self._follow_pace(websocket))
        self._closing.callback(pace_task.cancel)
        if self._http_until is not None:
            self._http_until = None
            log.info("websocket.recovered", registry_url=self._url)
            await self._http.aclose()
        return websocket

    def _measure_sleep(self) -> float:
        """Return the seconds slept since some fixed time: the loop's clock stops during sleep."""
        return self._clock.now() - asyncio.get_running_loop().time()

    async def _follow_pace(self, websocket: BoundedWebsocketsTransport) -> None:
        """Pass on the pace. An older or busy registry may not send it; replies contain it too."""
        try:
            with translated_errors():
                results = subscribe(websocket, documents.HEARTBEAT_PACE, {}, HeartbeatPaceData)
                async with aclosing(results) as events:
                    async for pace in events:
                        self._on_pace(pace.heartbeat_pace.interval_seconds)
        except RegistryRestartingError:
            self._restart_deadline = self._clock.now() + RESTART_SECONDS
        except RegistryError as error:
            log.debug("pace_subscription.failed", reason=str(error))

    async def _close_websocket(self) -> None:
        self._websocket = None
        await self._closing.aclose()
