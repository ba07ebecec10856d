"""The registry as a router asks it: from its last good reply where there is no new one in time.

It only reads, so that whatever it asks may be asked again.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

import structlog
from gql import GraphQLRequest

from agent import documents
from agent.breaker import CircuitBreaker
from agent.errors import RegistryUnavailableError, RequestRejectedError, is_final
from agent.follow import follow_status_changes
from agent.http_transport import HttpTransport
from agent.pace import Clock
from agent.replies import (
    AvailableNodes,
    AvailableNodesData,
    NodeData,
    NodesData,
    NodeWithCapabilities,
    ReplyT,
    StatusEvent,
)
from agent.settings import parse_graphql_url
from agent.tls import TlsConfig

MAX_CONNECTIONS = 10
MAX_QUESTIONS = 1000
MAX_PAGES = 200
PAGE_SIZE = 500
ATTEMPTS = 3
BACKOFF_SECONDS = 0.1

ValueT = TypeVar("ValueT")

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Answer(Generic[ValueT]):
    """`age_seconds` is since the registry said so; a stale one says why there is none newer."""

    value: ValueT
    age_seconds: float = 0.0
    reason: str | None = None

    @property
    def is_stale(self) -> bool:
        return self.reason is not None


class RegistryClient:
    """For one event loop; `async with` it, or close it with `aclose()`.

    A question takes at most `timeout_seconds`, retries included. While the registry is away its
    last good reply to the same question is the answer, for `stale_seconds`; without one, and for
    what it refuses, RegistryAwayError and RefusedError are raised. Those who ask the same at the
    same time share one request.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        tls: TlsConfig | None = None,
        timeout_seconds: float = 2.0,
        stale_seconds: float = 300.0,
        clock: Clock | None = None,
    ) -> None:
        """Raises ValueError for a bad address, or files of `trust` that cannot be used."""
        self._url = parse_graphql_url(url)
        self._token = token
        self._tls = tls or TlsConfig()
        self._timeout_seconds = timeout_seconds
        self._stale_seconds = stale_seconds
        self._clock = clock or Clock()
        self._circuit_breaker = CircuitBreaker(self._clock)
        self._transports: asyncio.LifoQueue[HttpTransport] = asyncio.LifoQueue()
        for _ in range(MAX_CONNECTIONS):
            transport = HttpTransport(self._url, token, self._tls, timeout_seconds=timeout_seconds)
            self._transports.put_nowait(transport)
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._replies: OrderedDict[str, tuple[float, Any]] = OrderedDict()

    async def get_nodes(self, **node_filter: Any) -> Answer[list[NodeWithCapabilities]]:
        """All nodes that the NodeFilter means, e.g. `roles=["PRODUCTION"]`, by node id."""
        filter_input = node_filter or None
        return await self._get_answer("nodes", filter_input, lambda: self._list_nodes(filter_input))

    async def get_nodes_by_role(self, role: str) -> Answer[list[NodeWithCapabilities]]:
        return await self.get_nodes(roles=[role.upper()])

    async def get_node(self, node_id: str) -> Answer[NodeWithCapabilities | None]:
        """None when no such node is registered."""

        async def fetch() -> NodeWithCapabilities | None:
            return (await self._execute(documents.NODE, {"nodeId": node_id}, NodeData)).node

        return await self._get_answer("node", node_id, fetch)

    async def get_available_nodes(
        self,
        requirements: Mapping[str, Any] | None = None,
        *,
        rank: str = "LEAST_LOADED",
        limit: int = 10,
    ) -> Answer[AvailableNodes]:
        """The nodes that meet NodeRequirements now, best first, and why others do not."""
        variables = {"require": requirements, "rank": rank, "limit": limit}

        async def fetch() -> AvailableNodes:
            reply = await self._execute(documents.AVAILABLE_NODES, variables, AvailableNodesData)
            return reply.available_nodes

        return await self._get_answer("available", variables, fetch)

    def follow_status_changes(self, **options: Any) -> AsyncGenerator[StatusEvent, None]:
        """As `agent.follow.follow_status_changes`, of this registry."""
        return follow_status_changes(
            self._url, token=self._token, tls=self._tls, clock=self._clock, **options
        )

    async def aclose(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        while not self._transports.empty():
            await self._transports.get_nowait().aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _get_answer(
        self, kind: str, arguments: object, fetch: Callable[[], Awaitable[ValueT]]
    ) -> Answer[ValueT]:
        key = json.dumps([kind, arguments], sort_keys=True)
        if key not in self._tasks:
            if not self._circuit_breaker.admit():
                return self._answer_from_cache(
                    key, RegistryUnavailableError("it did not answer lately")
                )
            task = asyncio.create_task(self._fetch(key, fetch))
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key))
        answer: Answer[ValueT] = await asyncio.shield(self._tasks[key])
        return answer

    async def _fetch(self, key: str, fetch: Callable[[], Awaitable[ValueT]]) -> Answer[ValueT]:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                value = await self._try_repeatedly(fetch)
        except RequestRejectedError as refusal:
            if is_final(refusal):
                self._record_success()  # it is there, and says no
                raise
            return self._record_failure(key, refusal)
        except RegistryUnavailableError as error:
            return self._record_failure(key, error)
        except TimeoutError:
            away = RegistryUnavailableError(f"no answer within {self._timeout_seconds:g} s")
            return self._record_failure(key, away)
        self._record_success()
        self._replies[key] = self._clock.now(), value
        self._replies.move_to_end(key)
        if len(self._replies) > MAX_QUESTIONS:
            self._replies.popitem(last=False)
        return Answer(value)

    async def _try_repeatedly(self, fetch: Callable[[], Awaitable[ValueT]]) -> ValueT:
        for attempt in range(1, ATTEMPTS):
            try:
                return await fetch()
            except (RegistryUnavailableError, RequestRejectedError) as error:
                if self._circuit_breaker.is_open or (
                    isinstance(error, RequestRejectedError) and is_final(error)
                ):
                    raise
                ceiling = BACKOFF_SECONDS * 2.0 ** (attempt - 1)
                await self._clock.wait(
                    error.retry_after_seconds + self._clock.uniform(0.0, ceiling)
                )
        return await fetch()

    def _record_success(self) -> None:
        if self._circuit_breaker.is_open:
            log.info("registry.recovered", registry_url=self._url)
        self._circuit_breaker.record_success()

    def _record_failure(
        self, key: str, error: RegistryUnavailableError | RequestRejectedError
    ) -> Answer[Any]:
        was_open = self._circuit_breaker.is_open
        self._circuit_breaker.record_failure()
        if self._circuit_breaker.is_open and not was_open:
            log.warning("registry.away", registry_url=self._url, reason=str(error))
        return self._answer_from_cache(key, error)

    def _answer_from_cache(
        self, key: str, error: RegistryUnavailableError | RequestRejectedError
    ) -> Answer[Any]:
        fetched_at, value = self._replies.get(key, (float("-inf"), None))
        age_seconds = self._clock.now() - fetched_at
        if age_seconds > self._stale_seconds:
            raise error
        return Answer(value, age_seconds, str(error))

    async def _list_nodes(
        self, node_filter: Mapping[str, Any] | None
    ) -> list[NodeWithCapabilities]:
        nodes: list[NodeWithCapabilities] = []
        after = None
        for _ in range(MAX_PAGES):
            variables = {"filter": node_filter, "first": PAGE_SIZE, "after": after}
            page = (await self._execute(documents.NODES, variables, NodesData)).nodes
            nodes += page.nodes
            after = page.page_info.end_cursor
            if not page.page_info.has_next_page:
                break
        return nodes

    async def _execute(
        self, document: GraphQLRequest, variables: dict[str, Any], reply_type: type[ReplyT]
    ) -> ReplyT:
        transport = await self._transports.get()
        try:
            return cast("ReplyT", await transport.execute(document, variables, reply_type))
        finally:
            self._transports.put_nowait(transport)
