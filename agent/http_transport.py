"""Requests to the registry over one reused HTTP connection. Nothing is retried here."""

from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Any

from gql import Client, GraphQLRequest
from gql.client import AsyncClientSession
from gql.transport.exceptions import TransportQueryError, TransportServerError
from gql.transport.httpx import HTTPXAsyncTransport
from httpx import Limits

from agent.bounded_answer import MAX_REPLY_BYTES, UNCOMPRESSED, make_limit
from agent.errors import RegistryUnavailableError, parse_errors, parse_http_error, shorten
from agent.replies import ReplyT, parse_reply
from agent.settings import is_loopback
from agent.tls import TlsConfig

TIMEOUT_SECONDS = 10.0
# Long enough for a heartbeat to find the connection of the previous one, and too short for a
# middlebox to have forgotten it. When the registry closes it first, httpx notices before it sends.
KEEPALIVE_SECONDS = 30.0
ACCEPT = "application/graphql-response+json, application/json;q=0.9"


def build_headers(token: str | None) -> dict[str, str]:
    """Return the User-Agent header and, with a token, the Authorization header."""
    headers = {"User-Agent": f"node-agent/{version('dagi-node-registry')}"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return headers


class HttpTransport:
    """One HTTP connection, for one request at a time.

    It connects on first use and again after each failure.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        tls: TlsConfig | None = None,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        max_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        """Load the files of `tls`. An answer of more than `max_bytes` is not usable.

        Raises: UnusableFileError: one of them cannot be used.
        """
        self._url = url
        self._token = token
        self._tls = tls or TlsConfig()
        self._tls.load_context(url)  # report an unusable file now, not at the first request
        self._timeout_seconds = timeout_seconds
        self._max_bytes = max_bytes
        self._session: AsyncClientSession | None = None
        self._exit_stack = AsyncExitStack()

    async def execute(
        self, document: GraphQLRequest, variables: dict[str, Any], reply_type: type[ReplyT]
    ) -> ReplyT:
        """Send the document and return its data as `reply_type`.

        Raises: RequestRejectedError: the registry answered with an error.
        RegistryUnavailableError: no usable answer came in time.
        """
        request = GraphQLRequest(document, variable_values=variables)
        try:
            session = self._session or await self._connect()
            data = await session.execute(request)
        except TransportQueryError as error:
            failure = parse_errors(error.errors)
            if isinstance(failure, RegistryUnavailableError):
                await self.aclose()
            raise failure from None
        except TransportServerError as error:
            transport = self._session.client.transport if self._session else None
            headers = getattr(transport, "response_headers", None) or {}
            await self.aclose()
            raise parse_http_error(error.code, headers, str(error)) from None
        except TimeoutError:
            await self.aclose()
            raise RegistryUnavailableError(
                f"no answer within {self._timeout_seconds:g} s"
            ) from None
        except Exception as error:  # noqa: BLE001 - gql raises AssertionError, TypeError, AttributeError and others for a response that is not GraphQL
            await self.aclose()
            raise RegistryUnavailableError(shorten(str(error) or type(error).__name__)) from None
        return parse_reply(data, reply_type)

    async def aclose(self) -> None:
        self._session = None
        await self._exit_stack.aclose()

    async def _connect(self) -> AsyncClientSession:
        # A new gql transport for each connection: a used one may never connect again.
        transport = HTTPXAsyncTransport(
            self._url,
            headers={"Accept": ACCEPT, **UNCOMPRESSED, **build_headers(self._token)},
            event_hooks={"response": [make_limit(self._max_bytes)]},
            timeout=self._timeout_seconds,
            limits=Limits(max_connections=1, keepalive_expiry=KEEPALIVE_SECONDS),
            # A proxy for the outside world must not stand between an agent and its own machine.
            trust_env=not is_loopback(self._url),
            verify=self._tls.load_context(self._url),
        )
        client = Client(
            transport=transport,
            fetch_schema_from_transport=False,
            execute_timeout=self._timeout_seconds,
        )
        session: AsyncClientSession = await self._exit_stack.enter_async_context(client)
        self._session = session
        return session
