"""Asks the database about many nodes at once, however deep in a query they are asked about."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from strawberry.dataloader import DataLoader

from db.core.database import Database
from db.core.errors import RegistryError

T = TypeVar("T")
Question = Callable[..., Awaitable[Mapping[UUID, Any]]]
_Key = tuple[Question, tuple[tuple[str, Any], ...], UUID]


class NodeLoader:
    """Gathers the same question about several nodes into one statement.

    Nothing is remembered: an answer is as fresh as the event or request that asks.
    """

    def __init__(self, database: Database) -> None:
        # It must not hold this loader: a cycle for each request is work for the collector.
        load = partial(_load, database)
        self._loader: DataLoader[_Key, Any] = DataLoader(load, cache=False)

    async def ask(
        self,
        question: Callable[..., Awaitable[Mapping[UUID, T]]],
        node: UUID,
        **arguments: Any,
    ) -> T | None:
        """`question(session, nodes, **arguments)` for this node; None where it has no answer."""
        answer: T | None = await self._loader.load((question, tuple(arguments.items()), node))
        return answer


async def _load(database: Database, keys: list[_Key]) -> list[Any]:
    nodes: dict[tuple[Question, tuple[tuple[str, Any], ...]], set[UUID]] = defaultdict(set)
    for question, arguments, node in keys:
        nodes[question, arguments].add(node)
    answers = {
        (question, arguments): await _answer(database, question, asked, dict(arguments))
        for (question, arguments), asked in nodes.items()
    }
    return [
        answer
        if isinstance(answer := answers[question, arguments], Exception)
        else answer.get(node)
        for question, arguments, node in keys
    ]


async def _answer(
    database: Database, question: Question, nodes: set[UUID], arguments: dict[str, Any]
) -> Mapping[UUID, Any] | RegistryError:
    try:
        async with database.read() as session:
            return await question(session, list(nodes), **arguments)
    except RegistryError as error:
        return error
