"""Costs as sums of products: numbers, except for page sizes that a request's variables set."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from db.core.pagination import MAX_PAGE_SIZE
from graph.core.settings import MAX_COUNTED_COST


class VariableSize(NamedTuple):
    """A page size that a variable sets; null means the argument's own default."""

    variable: str
    if_absent: int | None
    default: int

    def read_from(self, variables: Mapping[str, Any]) -> int:
        value = variables.get(self.variable, self.if_absent)
        return self.default if value is None else clamp_size(value)


class _Sum(NamedTuple):
    """The index of a sum that is computed for each request."""

    position: int


Size: TypeAlias = int | VariableSize
Cost: TypeAlias = int | _Sum
Term: TypeAlias = tuple[Size, Cost]


class Sums:
    """Collects the sums that depend on variables, so that each is computed once a request."""

    def __init__(self) -> None:
        self._variable_sums: list[tuple[int, Sequence[Term]]] = []

    def add(self, *terms: Term) -> Cost:
        """Return the sum of size times cost over the terms; a number where no variable matters."""
        constant, variable_terms = 0, []
        for size, cost in terms:
            if isinstance(size, int) and isinstance(cost, int):
                constant += size * cost
            elif size != 0 and cost != 0:
                variable_terms.append((size, cost))
        if not variable_terms:
            return min(constant, MAX_COUNTED_COST)
        self._variable_sums.append((constant, variable_terms))
        return _Sum(len(self._variable_sums) - 1)

    def to_formula(self, cost: Cost) -> "Formula":
        return Formula(cost, () if isinstance(cost, int) else tuple(self._variable_sums))


class Formula:
    """The cost of an operation for any variables. `maximum` is its largest value."""

    __slots__ = "_cost", "_sums", "maximum"

    def __init__(self, cost: Cost, sums: Sequence[tuple[int, Sequence[Term]]]) -> None:
        self._cost = cost
        self._sums = sums
        self.maximum = self._compute(lambda _: MAX_PAGE_SIZE)

    def evaluate(self, variables: Mapping[str, Any]) -> int:
        """Return the cost with these variables, as they were sent; at most MAX_COUNTED_COST."""
        return self._compute(lambda size: size.read_from(variables))

    def _compute(self, size_of: Callable[[VariableSize], int]) -> int:
        if isinstance(self._cost, int):
            return self._cost
        sums: list[int] = []
        for constant, terms in self._sums:
            total = constant + sum(
                (size if isinstance(size, int) else size_of(size))
                * (cost if isinstance(cost, int) else sums[cost.position])
                for size, cost in terms
            )
            sums.append(min(total, MAX_COUNTED_COST))
        return sums[self._cost.position]


def clamp_size(size: object) -> int:
    """Return the size within the bounds of a page: the resolver rejects any other size later."""
    if isinstance(size, int) and not isinstance(size, bool):
        return min(max(size, 0), MAX_PAGE_SIZE)
    return MAX_PAGE_SIZE
