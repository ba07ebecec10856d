"""The registry's client for routers, which falls back to the last good reply.

It only reads, so that every request may be retried.
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
from agent.bounded_answer import MAX_PAGE_BYTES
from agent.breaker import CircuitBreaker
from agent.errors import RegistryError, RegistryUnavailableError, RequestRejectedError, is_final
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
MAX_REPLIES = 1000
MAX_PAGES = 200
PAGE_SIZE = 500
ATTEMPTS = 3
BACKOFF_SECONDS = 0.1

ValueT = TypeVar("ValueT")

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Answer(Generic[ValueT]):
    """A value and its age since the registry sent it; a stale one has the reason for its age."""

    value: ValueT
    age_seconds: float = 0.0
    reason: str | None = None

    @property
    def is_stale(self) -> bool:
        return self.reason is not None


class RegistryClient:
    """A client of the registry for one event loop. Use `async with`, or close it with `aclose()`.

    A query takes at most `timeout_seconds`, retries included. While the registry is unavailable,
    the answer is its last good reply to the same query, for `stale_seconds`. Identical concurrent
    queries share one request.

    Every query raises: RegistryUnavailableError: the registry is unavailable and there is no reply
    to fall back to. RequestRejectedError: the registry rejected the query.
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
        """Check the address and load the files of `tls`.

        Raises: ValueError: the address is invalid, or a file cannot be used.
        """
        self._url = parse_graphql_url(url)
        self._token = token
        self._tls = tls or TlsConfig()
        self._timeout_seconds = timeout_seconds
        self._stale_seconds = stale_seconds
        self._clock = clock or Clock()
        self._circuit_breaker = CircuitBreaker(self._clock)
        self._transports: asyncio.LifoQueue[HttpTransport] = asyncio.LifoQueue()
        for _ in range(MAX_CONNECTIONS):
            transport = HttpTransport(
                self._url,
                token,
                self._tls,
                timeout_seconds=timeout_seconds,
                max_bytes=MAX_PAGE_BYTES,
            )
            self._transports.put_nowait(transport)
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._replies: OrderedDict[str, tuple[float, Any]] = OrderedDict()

    async def get_nodes(self, **node_filter: Any) -> Answer[list[NodeWithCapabilities]]:
        """Return all nodes that match the fields of NodeFilter, ordered by node id.

        For example `get_nodes(roles=["PRODUCTION"])`.
        """
        filter_input = node_filter or None
        return await self._get_answer("nodes", filter_input, lambda: self._list_nodes(filter_input))

    async def get_nodes_by_role(self, role: str) -> Answer[list[NodeWithCapabilities]]:
        return await self.get_nodes(roles=[role.upper()])

    async def get_node(self, node_id: str) -> Answer[NodeWithCapabilities | None]:
        """Return the node, None if no such node is registered."""

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
        """Return the nodes that meet the fields of NodeRequirements now, best first.

        The answer also says why other nodes do not meet them. `rank` is a value of NodeRanking.
        """
        variables = {"require": requirements, "rank": rank, "limit": limit}

        async def fetch() -> AvailableNodes:
            reply = await self._execute(documents.AVAILABLE_NODES, variables, AvailableNodesData)
            return reply.available_nodes

        return await self._get_answer("available", variables, fetch)

    def follow_status_changes(self, **options: Any) -> AsyncGenerator[StatusEvent, None]:
        """Yield this registry's status changes as `agent.follow_status_changes` does."""
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
                    key, RegistryUnavailableError("the registry did not answer recently")
                )
            task = asyncio.create_task(self._fetch_or_fall_back(key, fetch))
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key))
        answer: Answer[ValueT] = await asyncio.shield(self._tasks[key])
        return answer

    async def _fetch_or_fall_back(
        self, key: str, fetch: Callable[[], Awaitable[ValueT]]
    ) -> Answer[ValueT]:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                value = await self._fetch_with_retries(fetch)
        except RequestRejectedError as error:
            if is_final(error):
                self._record_success()  # the registry is available, though it rejects the query
                raise
            return self._record_failure(key, error)
        except RegistryUnavailableError as error:
            return self._record_failure(key, error)
        except TimeoutError:
            reason = f"no answer within {self._timeout_seconds:g} s"
            return self._record_failure(key, RegistryUnavailableError(reason))
        self._record_success()
        self._replies[key] = self._clock.now(), value
        self._replies.move_to_end(key)
        if len(self._replies) > MAX_REPLIES:
            self._replies.popitem(last=False)
        return Answer(value)

    async def _fetch_with_retries(self, fetch: Callable[[], Awaitable[ValueT]]) -> ValueT:
        for attempt in range(1, ATTEMPTS):
            try:
                return await fetch()
            except RegistryError as error:
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
            log.info("circuit_breaker.closed", registry_url=self._url)
        self._circuit_breaker.record_success()

    def _record_failure(self, key: str, error: RegistryError) -> Answer[Any]:
        was_open = self._circuit_breaker.is_open
        self._circuit_breaker.record_failure()
        if self._circuit_breaker.is_open and not was_open:
            log.warning("circuit_breaker.opened", registry_url=self._url, reason=str(error))
        return self._answer_from_cache(key, error)

    def _answer_from_cache(self, key: str, error: RegistryError) -> Answer[Any]:
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
