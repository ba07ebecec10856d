"""Requests to the registry over one reused gql connection. Nothing is retried here."""

import math
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from importlib.metadata import version
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from gql import Client, GraphQLRequest
from gql.client import AsyncClientSession
from gql.transport.async_transport import AsyncTransport
from gql.transport.exceptions import TransportQueryError, TransportServerError
from gql.transport.httpx import HTTPXAsyncTransport
from httpx import Limits
from pydantic import BaseModel, ValidationError

from agent.settings import is_loopback
from agent.tls import TlsConfig

TIMEOUT_SECONDS = 10.0
# Long enough for a heartbeat to find the connection of the one before it, and too short for a
# middlebox to have forgotten it. When the registry closes it first, httpx notices before it sends.
KEEPALIVE_SECONDS = 30.0
MAX_RETRY_AFTER_SECONDS = 3600.0
MAX_REASON_LENGTH = 200

UNAUTHENTICATED, FORBIDDEN, RATE_LIMITED = "UNAUTHENTICATED", "FORBIDDEN", "RATE_LIMITED"
# The registry does not call them retryable, for a mutation may be half done. A reader asks again.
TRANSIENT_CODES = {"", "INTERNAL"}
CODES_BY_STATUS = {401: UNAUTHENTICATED, 403: FORBIDDEN, 429: RATE_LIMITED}

ReplyT = TypeVar("ReplyT", bound=BaseModel)


class RegistryUnavailableError(Exception):
    """No usable answer came. The request may have been carried out or not."""

    def __init__(self, reason: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class RegistryRestartingError(RegistryUnavailableError):
    """It said that it goes, and is expected back, or another in its place."""


class RequestRejectedError(Exception):
    """The registry said no. `code` is its `extensions.code`, or empty; `facts` the others."""

    def __init__(self, code: str, message: str, facts: Mapping[str, Any]) -> None:
        super().__init__(f"{message} ({code})" if code else message)
        self.code = code
        self.message = message
        self.facts = facts

    @property
    def is_retryable(self) -> bool:
        return self.facts.get("retryable") is True

    @property
    def retry_after_seconds(self) -> float:
        return _parse_retry_after(self.facts.get("retryAfterSeconds"))


def is_final(refusal: RequestRejectedError) -> bool:
    """Whether it is useless to ask the same again; for what only reads."""
    return not refusal.is_retryable and refusal.code not in TRANSIENT_CODES


def build_headers(token: str | None) -> dict[str, str]:
    said = {"User-Agent": f"node-agent/{version('dagi-node-registry')}"}
    if token:
        said["Authorization"] = f"Bearer {token}"
    return said


def make_http_transport(
    url: str,
    token: str | None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    trust: TlsConfig | None = None,
) -> Callable[[], AsyncTransport]:
    """Makes a transport for each new connection: a used gql transport may never connect again.

    Raises UnusableFileError.
    """
    accept = "application/graphql-response+json, application/json;q=0.9"
    # A proxy for the outside world must not stand between an agent and its own machine.
    trust_env = not is_loopback(url)
    trust = trust or TlsConfig()
    trust.load_context(url)  # what cannot be used is told now
    return lambda: HTTPXAsyncTransport(
        url,
        headers={"Accept": accept, **build_headers(token)},
        timeout=timeout_seconds,
        limits=Limits(max_connections=1, keepalive_expiry=KEEPALIVE_SECONDS),
        trust_env=trust_env,
        verify=trust.load_context(url),
    )


class RegistryTransport(Protocol):
    """Whatever carries requests to it, one at a time: a Connection here, `agent.transport.Link`.

    `ask` raises RegistryAwayError, and RefusedError when the registry answered with an error.
    """

    async def execute(
        self, document: GraphQLRequest, variables: dict[str, Any], reply: type[ReplyT]
    ) -> ReplyT: ...

    async def aclose(self) -> None: ...


class HttpTransport:
    """For one request at a time. It connects when first used and again after each failure."""

    def __init__(
        self,
        make_transport: Callable[[], AsyncTransport],
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._make_transport = make_transport
        self._timeout_seconds = timeout_seconds
        self._session: AsyncClientSession | None = None
        self._closing = AsyncExitStack()

    async def execute(
        self, document: GraphQLRequest, variables: dict[str, Any], reply: type[ReplyT]
    ) -> ReplyT:
        """Raises RegistryAwayError, and RefusedError when the registry answered with an error."""
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
            answered = getattr(transport, "response_headers", None) or {}
            await self.aclose()
            raise parse_http_error(error.code, answered, str(error)) from None
        except TimeoutError:
            await self.aclose()
            raise RegistryUnavailableError(
                f"no answer within {self._timeout_seconds:g} s"
            ) from None
        except Exception as error:  # noqa: BLE001 - gql meets a reply that is no GraphQL with AssertionError, TypeError, AttributeError and others
            await self.aclose()
            raise RegistryUnavailableError(shorten(str(error) or type(error).__name__)) from None
        return parse_data(data, reply)

    async def aclose(self) -> None:
        self._session = None
        await self._closing.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _connect(self) -> AsyncClientSession:
        client = Client(
            transport=self._make_transport(),
            fetch_schema_from_transport=False,
            execute_timeout=self._timeout_seconds,
        )
        session: AsyncClientSession = await self._closing.enter_async_context(client)
        self._session = session
        return session


def parse_data(data: object, reply: type[ReplyT]) -> ReplyT:
    """Raises RegistryAwayError for what is not of the schema."""
    try:
        return reply.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise RegistryUnavailableError(
            f"the answer is not of the schema: {field}: {first['msg']}"
        ) from None


def parse_errors(errors: object) -> RegistryUnavailableError | RequestRejectedError:
    """The first of the `errors` of a GraphQL answer."""
    match errors:
        case [{"message": str(message), **rest}, *_]:
            extensions = rest.get("extensions")
            facts = extensions if isinstance(extensions, dict) else {}
            code = facts.get("code")
            return RequestRejectedError(
                code if isinstance(code, str) else "", shorten(message), facts
            )
    return RegistryUnavailableError("the answer is not GraphQL")


def parse_http_error(
    status: int | None, answered: Mapping[str, str], reason: str
) -> RegistryUnavailableError | RequestRejectedError:
    """An HTTP status without a GraphQL answer, mostly a proxy's; `answered` are its headers."""
    try:
        retry_after = _parse_retry_after(float(answered.get("Retry-After", 0)))
    except (ValueError, LookupError):
        retry_after = 0.0  # a date, or several; the agent's own back-off will do
    if status in CODES_BY_STATUS:
        code = CODES_BY_STATUS[status]
        facts = {"retryable": code == RATE_LIMITED, "retryAfterSeconds": retry_after}
        return RequestRejectedError(code, f"HTTP {status}", facts)
    return RegistryUnavailableError(shorten(reason), retry_after)


def _parse_retry_after(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    return min(max(float(value), 0.0), MAX_RETRY_AFTER_SECONDS)


def shorten(reason: str) -> str:
    """One printable line, short enough for a log: gql puts whole pages into its errors."""
    line = " ".join("".join(c if c.isprintable() else " " for c in reason).split())
    return line if len(line) <= MAX_REASON_LENGTH else f"{line[:MAX_REASON_LENGTH]}…"
