"""Costs that are sums of products: numbers, but for the sizes that a request's variables give."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from db.core.pagination import MAX_PAGE_SIZE
from graph.core.settings import MAX_COUNTED_COST


class Given(NamedTuple):
    """A size that is left to a variable; null means the argument's own default."""

    variable: str
    unless_given: int | None
    default: int

    def among(self, variables: Mapping[str, Any]) -> int:
        value = variables.get(self.variable, self.unless_given)
        return self.default if value is None else clamped(value)


class _Sum(NamedTuple):
    """The place of a sum among those that are worked out for each request."""

    place: int


Size: TypeAlias = int | Given
Cost: TypeAlias = int | _Sum
Term: TypeAlias = tuple[Size, Cost]


class Sums:
    """Collects the sums that depend on variables; one that is used often is worked out once."""

    def __init__(self) -> None:
        self._open: list[tuple[int, Sequence[Term]]] = []

    def total(self, *terms: Term) -> Cost:
        """Of products of a size and a cost; a number where no variable matters."""
        constant, open_terms = 0, []
        for size, cost in terms:
            if isinstance(size, int) and isinstance(cost, int):
                constant += size * cost
            elif size != 0 and cost != 0:
                open_terms.append((size, cost))
        if not open_terms:
            return min(constant, MAX_COUNTED_COST)
        self._open.append((constant, open_terms))
        return _Sum(len(self._open) - 1)

    def formula(self, cost: Cost) -> "Formula":
        return Formula(cost, () if isinstance(cost, int) else tuple(self._open))


class Formula:
    """Of one cost, for any variables. `most` is what it comes to at worst."""

    __slots__ = "_cost", "_sums", "most"

    def __init__(self, cost: Cost, sums: Sequence[tuple[int, Sequence[Term]]]) -> None:
        self._cost = cost
        self._sums = sums
        self.most = self._worked_out(lambda _: MAX_PAGE_SIZE)

    def of(self, variables: Mapping[str, Any]) -> int:
        """At most MAX_COUNTED_COST. `variables` are as they were sent."""
        return self._worked_out(lambda size: size.among(variables))

    def _worked_out(self, size_of: Callable[[Given], int]) -> int:
        if isinstance(self._cost, int):
            return self._cost
        done: list[int] = []
        for constant, terms in self._sums:
            total = constant + sum(
                (size if isinstance(size, int) else size_of(size))
                * (cost if isinstance(cost, int) else done[cost.place])
                for size, cost in terms
            )
            done.append(min(total, MAX_COUNTED_COST))
        return done[self._cost.place]


def clamped(size: object) -> int:
    """What no page can have is refused by the resolver; until then it counts as the most."""
    if isinstance(size, int) and not isinstance(size, bool):
        return min(max(size, 0), MAX_PAGE_SIZE)
    return MAX_PAGE_SIZE
