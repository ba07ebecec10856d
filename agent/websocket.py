"""A websocket to the registry with bounded memory, whose failures become `agent.errors`."""

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

from agent.bounded_answer import MAX_REPLY_BYTES
from agent.errors import (
    FORBIDDEN,
    UNAUTHENTICATED,
    RegistryError,
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
# Middleboxes drop an idle connection, usually after a minute or more.
PING_SECONDS = 20.0
# https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md
CODES_BY_CLOSE_CODE = {4401: UNAUTHENTICATED, 4403: FORBIDDEN}


class WebSocketOpenError(RegistryUnavailableError):
    """No websocket could be opened. HTTP may work: the registry may be reachable."""


class BoundedWebsocketsTransport(WebsocketsTransport):
    """A gql transport that reads a message only after the previous one was consumed.

    gql's queue is unbounded. Here messages wait in the bounded buffers of websockets and TCP, and
    in the registry, which asks a reader that falls far behind for a resync.
    """

    @property
    def is_alive(self) -> bool:
        """Whether the connection is not known to be lost."""
        return self.receive_data_task is not None and not self.receive_data_task.done()

    async def _receive(self) -> str:
        for listener in list(self.listeners.values()):
            await listener._queue.join()  # noqa: SLF001 - nothing public shows that it was consumed
        return await super()._receive()

    def _parse_answer(self, answer: str) -> tuple[str, int | None, ExecutionResult | None]:
        try:
            return super()._parse_answer(answer)
        except TransportError:
            raise
        except Exception as error:
            # Otherwise gql's reading task would end unnoticed, and the reader would wait for ever.
            raise TransportProtocolError("the message is not graphql-transport-ws") from error


@asynccontextmanager
async def open_websocket(
    url: str,
    token: str | None,
    tls: TlsConfig,
    *,
    open_seconds: float | None = None,
    max_bytes: int = MAX_REPLY_BYTES,
) -> AsyncIterator[BoundedWebsocketsTransport]:
    """Open a websocket to the endpoint with the http(s) address `url` for the block.

    A message of more than `max_bytes` ends the connection.

    Failures of the connection within the block are raised as the same errors.

    Raises: RequestRejectedError: the registry rejected the connection. WebSocketOpenError: it
    could not be opened, but HTTP may work. RegistryUnavailableError: any other failure.
    """
    transport = _create_transport(url, token, tls, max_bytes)
    open_seconds = open_seconds or TIMEOUT_SECONDS
    try:
        with translated_errors(open_seconds, WebSocketOpenError):
            async with asyncio.timeout(open_seconds):
                await transport.connect()
        with translated_errors():
            yield transport
    finally:
        if transport.receive_data_task:
            transport.receive_data_task.cancel()  # it may wait for a reader that is gone
        await transport.close()


def _create_transport(
    url: str, token: str | None, tls: TlsConfig, max_bytes: int
) -> BoundedWebsocketsTransport:
    # A proxy for the outside world must not stand between an agent and its own machine.
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
            # Send a close frame without waiting for the reply, which follows unread messages.
            "close_timeout": 0,
            # With compression the size of one read would be unbounded.
            "compression": None,
            "max_size": max_bytes,
            "proxy": True if is_remote else None,
        },
    )


async def subscribe(
    transport: BoundedWebsocketsTransport,
    document: GraphQLRequest,
    variables: dict[str, Any],
    reply_type: type[ReplyT],
) -> AsyncGenerator[ReplyT, None]:
    """Yield the subscription's replies until an error: the registry's subscriptions have no end."""
    request = GraphQLRequest(document, variable_values=variables)
    # Send no stop: on a dead socket gql would raise that failure instead of ending the stream.
    async with aclosing(transport.subscribe(request, send_stop=False)) as results:
        async for result in results:
            yield parse_result(result, reply_type)
    raise RegistryUnavailableError("the stream has ended")


def parse_result(result: ExecutionResult, reply_type: type[ReplyT]) -> ReplyT:
    """Return the data of the result as `reply_type`.

    Raises: RequestRejectedError: the result contains errors. RegistryUnavailableError: the data
    does not match the schema.
    """
    if result.errors:
        raise parse_errors(result.errors)
    return parse_reply(result.data, reply_type)


@contextmanager
def translated_errors(
    timeout_seconds: float | None = None,
    default: type[RegistryUnavailableError] = RegistryUnavailableError,
) -> Iterator[None]:
    """Raise errors of gql, websockets and timeouts within the block as those of `agent.errors`.

    `default` is the class for failures that the registry did not report, once a connection exists.
    """
    try:
        yield
    except (TransportError, TimeoutError) as error:
        raise _translate_error(error, timeout_seconds or TIMEOUT_SECONDS, default) from None


def _translate_error(
    error: Exception, timeout_seconds: float, default: type[RegistryUnavailableError]
) -> RegistryError:
    if isinstance(error, TransportQueryError):
        return parse_errors(error.errors)
    cause: BaseException = error
    while isinstance(cause, TransportError) and cause.__cause__:
        cause = cause.__cause__
    reason = shorten(str(cause) or type(cause).__name__)
    failure: RegistryError
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
