"""The limits on the size of an operation, and the error of one that exceeds them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from db.core.errors import RegistryError
from graph.core.settings import Settings
from graph.execution.cost_formula import Formula


class QueryTooComplex(RegistryError):
    """An operation over a limit: `exceeded` is depth, aliases, directives, cost or length,
    or the size of its response in bytes.

    The error carries the measured value under that name, and the limit.
    """

    code = "QUERY_TOO_COMPLEX"

    def __init__(self, exceeded: str, measured: int, limit: int) -> None:
        super().__init__(
            f"the query's {exceeded} is {measured}, the limit is {limit}",
            **{"exceeded": exceeded, exceeded: measured, "limit": limit},
        )


@dataclass(frozen=True, slots=True)
class Complexity:
    """The size of one operation.

    `root_fields` are the names of the fields that will be resolved, twice if under two aliases.
    """

    depth: int
    aliases: int
    directives: int
    root_fields: tuple[str, ...]
    cost: Formula


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """The largest operation that is run."""

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

    def check(self, complexity: Complexity, variables: Mapping[str, Any] | None) -> None:
        """Check an operation with its variables, as they were sent. Raises QueryTooComplex."""
        if complexity.depth > self.depth:
            raise QueryTooComplex("depth", complexity.depth, self.depth)
        if complexity.aliases > self.aliases:
            raise QueryTooComplex("aliases", complexity.aliases, self.aliases)
        if complexity.directives > self.directives:
            raise QueryTooComplex("directives", complexity.directives, self.directives)
        if (
            complexity.cost.maximum > self.cost
            and (cost := complexity.cost.evaluate(variables or {})) > self.cost
        ):
            raise QueryTooComplex("cost", cost, self.cost)
