"""One websocket to the registry: bounded memory, and two ways to fail, as in `agent.errors`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

from gql import GraphQLRequest
from gql.transport.exceptions import TransportError, TransportProtocolError, TransportQueryError
from gql.transport.websockets import WebsocketsTransport
from graphql import ExecutionResult
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close, CloseCode

from agent.errors import (
    FORBIDDEN,
    UNAUTHENTICATED,
    RegistryRestartingError,
    RegistryUnavailableError,
    RequestRejectedError,
    parse_errors,
    parse_http_error,
    shorten,
)
from agent.http_transport import TIMEOUT_SECONDS, build_headers
from agent.replies import ReplyT, parse_reply
from agent.settings import is_loopback
from agent.tls import TlsConfig

PROTOCOL = "graphql-transport-ws"
# Middleboxes forget a silent connection, as a rule not before a minute.
PING_SECONDS = 20.0
# https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md
CODES_BY_CLOSE_CODE = {4401: UNAUTHENTICATED, 4403: FORBIDDEN}


class WebSocketOpenError(RegistryUnavailableError):
    """No websocket could be opened, though something may have answered: HTTP may get through."""


class BoundedWebsocketsTransport(WebsocketsTransport):
    """Reads on when what came before was taken: gql's queue has no bound.

    What waits then, waits in the bounded buffers of websockets and TCP, and at the registry, which
    asks a reader that is much too slow for a resync.
    """

    @property
    def is_alive(self) -> bool:
        """False once it is known that the connection is lost."""
        return self.receive_data_task is not None and not self.receive_data_task.done()

    async def _receive(self) -> str:
        for listener in list(self.listeners.values()):
            await listener._queue.join()  # noqa: SLF001 - nothing public says that it was taken
        return await super()._receive()

    def _parse_answer(self, answer: str) -> tuple[str, int | None, ExecutionResult | None]:
        try:
            return super()._parse_answer(answer)
        except TransportError:
            raise
        except Exception as error:
            # It would end gql's reading task unseen, and the reader would wait for ever.
            raise TransportProtocolError("what came is not graphql-transport-ws") from error


@asynccontextmanager
async def open_websocket(
    url: str, token: str | None, tls: TlsConfig, *, open_seconds: float | None = None
) -> AsyncIterator[BoundedWebsocketsTransport]:
    """`url` is the http(s) address of the endpoint.

    Whatever fails of the connection while it is used is raised as RegistryAwayError, or as
    RefusedError when the registry said no; UnopenedError where HTTP may do better.
    """
    transport = _create_transport(url, token, tls)
    open_seconds = open_seconds or TIMEOUT_SECONDS
    try:
        with translated_errors(open_seconds, WebSocketOpenError):
            async with asyncio.timeout(open_seconds):
                await transport.connect()
        with translated_errors():
            yield transport
    finally:
        if transport.receive_data_task:
            transport.receive_data_task.cancel()  # it may wait for a reader that has left
        await transport.close()


def _create_transport(url: str, token: str | None, tls: TlsConfig) -> BoundedWebsocketsTransport:
    # A proxy for the outside world must not stand before one's own machine.
    is_remote = not is_loopback(url)
    return BoundedWebsocketsTransport(
        url.replace("http", "ws", 1),
        headers=build_headers(token),
        ssl=tls.load_context(url) if url.startswith("https:") else False,
        subprotocols=[PROTOCOL],
        connect_timeout=None,
        ack_timeout=None,
        connect_args={
            "open_timeout": None,
            "ping_interval": PING_SECONDS,
            "ping_timeout": PING_SECONDS,
            # It says goodbye and does not wait for the answer, behind what nobody will read.
            "close_timeout": 0,
            # Inflated, what one read of the socket brings would have no bound.
            "compression": None,
            "proxy": True if is_remote else None,
        },
    )


async def subscribe(
    transport: BoundedWebsocketsTransport,
    document: GraphQLRequest,
    variables: dict[str, Any],
    reply_type: type[ReplyT],
) -> AsyncGenerator[ReplyT, None]:
    """Ends with an error, for a subscription to the registry has no end."""
    request = GraphQLRequest(document, variable_values=variables)
    # No goodbye: where the socket is dead, gql would raise its failure instead of the end.
    async with aclosing(transport.subscribe(request, send_stop=False)) as results:
        async for result in results:
            yield parse_result(result, reply_type)
    raise RegistryUnavailableError("the stream has ended")


def parse_result(result: ExecutionResult, reply_type: type[ReplyT]) -> ReplyT:
    """Raises RefusedError for errors, RegistryAwayError for what is not of the schema."""
    if result.errors:
        raise parse_errors(result.errors)
    return parse_reply(result.data, reply_type)


@contextmanager
def translated_errors(
    timeout_seconds: float | None = None,
    default: type[RegistryUnavailableError] = RegistryUnavailableError,
) -> Iterator[None]:
    """What gql, websockets and time limits raise, as one of the errors of `agent.errors`.

    `away` is for what the registry itself has not said, where a connection was made at all.
    """
    try:
        yield
    except (TransportError, TimeoutError) as error:
        raise _translate_error(error, timeout_seconds or TIMEOUT_SECONDS, default) from None


def _translate_error(
    error: Exception, timeout_seconds: float, default: type[RegistryUnavailableError]
) -> RegistryUnavailableError | RequestRejectedError:
    if isinstance(error, TransportQueryError):
        return parse_errors(error.errors)
    cause: BaseException = error
    while isinstance(cause, TransportError) and cause.__cause__:
        cause = cause.__cause__
    reason = shorten(str(cause) or type(cause).__name__)
    failure: RegistryUnavailableError | RequestRejectedError
    match cause:
        case ConnectionClosed(rcvd=Close(code=code)) if code in CODES_BY_CLOSE_CODE:
            failure = RequestRejectedError(CODES_BY_CLOSE_CODE[code], reason, {})
        case ConnectionClosed(rcvd=Close(code=CloseCode.SERVICE_RESTART)):
            failure = RegistryRestartingError(reason)
        case InvalidStatus(response=response):
            failure = parse_http_error(response.status_code, response.headers, reason)
            if isinstance(failure, RegistryUnavailableError):
                failure = default(reason, failure.retry_after_seconds)
        case TimeoutError():
            failure = default(f"no answer within {timeout_seconds:g} s")
        case OSError():
            failure = RegistryUnavailableError(reason)
        case _:
            failure = default(reason)
    return failure
