"""Asks the database about many nodes at once, however deep in a query they are asked about."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from strawberry.dataloader import DataLoader

from db.core.database import Database
from db.core.errors import RegistryError

ResultT = TypeVar("ResultT")
NodesQuery = Callable[..., Awaitable[Mapping[UUID, Any]]]
_LoadKey = tuple[NodesQuery, tuple[tuple[str, Any], ...], UUID]


class NodeLoader:
    """Gathers the same query about several nodes into one statement.

    Nothing is remembered: an result is as fresh as the event or request that asks.
    """

    def __init__(self, database: Database) -> None:
        # It must not hold this loader: a cycle for each request is work for the collector.
        load = partial(_load_all, database)
        self._loader: DataLoader[_LoadKey, Any] = DataLoader(load, cache=False)

    async def load(
        self,
        query: Callable[..., Awaitable[Mapping[UUID, ResultT]]],
        node_id: UUID,
        **arguments: Any,
    ) -> ResultT | None:
        """`query(session, nodes, **arguments)` for this node; None where it has no result."""
        result: ResultT | None = await self._loader.load((query, tuple(arguments.items()), node_id))
        return result


async def _load_all(database: Database, keys: list[_LoadKey]) -> list[Any]:
    node_ids: dict[tuple[NodesQuery, tuple[tuple[str, Any], ...]], set[UUID]] = defaultdict(set)
    for query, arguments, node_id in keys:
        node_ids[query, arguments].add(node_id)
    results = {
        (query, arguments): await _run_query(database, query, ids, dict(arguments))
        for (query, arguments), ids in node_ids.items()
    }
    return [
        result
        if isinstance(result := results[query, arguments], Exception)
        else result.get(node_id)
        for query, arguments, node_id in keys
    ]


async def _run_query(
    database: Database, query: NodesQuery, node_ids: set[UUID], arguments: dict[str, Any]
) -> Mapping[UUID, Any] | RegistryError:
    try:
        async with database.read() as session:
            return await query(session, list(node_ids), **arguments)
    except RegistryError as error:
        return error
