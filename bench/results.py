"""What a bench yields: figures next to their limits, and targets that are reported, not enforced.

The names of the fields are keys of the JSON that `make bench JSON=` writes.
"""

import math
import operator
import statistics
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, minimum and maximum of several runs."""

    median: float
    low: float
    high: float

    @classmethod
    def from_values(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on the ratio of figure to limit, or on the figure itself."""

    of: Literal["ratio", "figure"]
    bound: Literal["at least", "at most"]
    value: float

    def is_met_by(self, measured: float) -> bool:
        compare = operator.ge if self.bound == "at least" else operator.le
        return bool(compare(measured, self.value))


@dataclass(frozen=True, slots=True)
class Result:
    """A row of the table: the figures of several runs and, in the same order, their limits.

    The figure and the limit of one run were measured right after each other.
    """

    name: str
    unit: str
    figures: Sequence[float]
    limit_name: str
    limits: Sequence[float]
    target: Target | None = None
    note: str = ""

    @property
    def figure(self) -> Spread:
        return Spread.from_values(self.figures)

    @property
    def limit(self) -> Spread:
        return Spread.from_values(self.limits)

    @property
    def ratio(self) -> Spread:
        """The ratio of figure to limit, taken per run so that a slow run affects both sides.

        It is NaN for a limit of 0, which is one that took less than a tick of the clock.
        """
        pairs = zip(self.figures, self.limits, strict=True)
        return Spread.from_values([f / n if n else math.nan for f, n in pairs])

    @property
    def is_met(self) -> bool | None:
        """Whether the medians meet the target; None without a target."""
        if self.target is None:
            return None
        measured = self.ratio if self.target.of == "ratio" else self.figure
        return self.target.is_met_by(measured.median)


class Bench(Protocol):
    """A function that measures one topic."""

    def __call__(self, *, quick: bool) -> AsyncIterator[Result]:
        """Yield results; a quick run takes a few seconds and its figures mean nothing."""
