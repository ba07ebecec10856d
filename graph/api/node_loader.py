"""A data loader that reads many nodes by one statement, at whatever depth of a query."""

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
    """A loader that combines equal queries about different nodes into one statement.

    It caches nothing, so that a result is as fresh as the event or request that loads it.
    """

    def __init__(self, database: Database) -> None:
        # A bound method would leave each request a reference cycle for the garbage collector.
        load = partial(_load_all, database)
        self._loader: DataLoader[_LoadKey, Any] = DataLoader(load, cache=False)

    async def load(
        self,
        query: Callable[..., Awaitable[Mapping[UUID, ResultT]]],
        node_id: UUID,
        **arguments: Any,
    ) -> ResultT | None:
        """Return the result of `query(session, node_ids, **arguments)` for one node, or None."""
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
