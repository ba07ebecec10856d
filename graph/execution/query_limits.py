"""How much an operation may ask for, and the refusal of one that asks for more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from db.core.errors import RegistryError
from graph.core.settings import Settings
from graph.execution.cost_formula import Formula


class QueryTooComplex(RegistryError):
    """`exceeded` is depth, aliases, directives or cost; the fact of that name says by how much."""

    code = "QUERY_TOO_COMPLEX"

    def __init__(self, exceeded: str, asked: int, limit: int) -> None:
        super().__init__(
            f"the query's {exceeded} is {asked}, and {limit} is the limit",
            **{"exceeded": exceeded, exceeded: asked, "limit": limit},
        )


@dataclass(frozen=True, slots=True)
class Complexity:
    """Of one operation, for as long as its document is known.

    `root_fields` are the names of those that will be resolved, twice if under two names.
    """

    depth: int
    aliases: int
    directives: int
    root_fields: tuple[str, ...]
    cost: Formula


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """The largest query that is run."""

    depth: int
    aliases: int
    directives: int
    cost: int

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            depth=settings.max_query_depth,
            aliases=settings.max_query_aliases,
            directives=settings.max_query_directives,
            cost=settings.max_query_cost,
        )

    def require(self, asked: Complexity, variables: Mapping[str, Any] | None) -> None:
        """Raises QueryTooComplex. `variables` are as they were sent."""
        if asked.depth > self.depth:
            raise QueryTooComplex("depth", asked.depth, self.depth)
        if asked.aliases > self.aliases:
            raise QueryTooComplex("aliases", asked.aliases, self.aliases)
        if asked.directives > self.directives:
            raise QueryTooComplex("directives", asked.directives, self.directives)
        if asked.cost.most > self.cost and (cost := asked.cost.of(variables or {})) > self.cost:
            raise QueryTooComplex("cost", cost, self.cost)
