"""What a bench yields: figures beside their limits, and targets that are told, not enforced."""

import math
import operator
import statistics
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Spread:
    """Of several runs."""

    median: float
    low: float
    high: float

    @classmethod
    def from_values(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Target:
    """What the ratio to the limit, or the figure itself, is to be."""

    of: Literal["ratio", "figure"]
    bound: Literal["at least", "at most"]
    value: float

    def is_met_by(self, measured: float) -> bool:
        compare = operator.ge if self.bound == "at least" else operator.le
        return bool(compare(measured, self.value))


@dataclass(frozen=True, slots=True)
class Result:
    """`figures` and `limits` are pairs: those of one run were taken right after each other."""

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
        """Of each run by itself, so that what slows a whole run down counts on both sides. NaN
        beside a limit of 0: one that was over before a clock ticked.
        """
        pairs = zip(self.figures, self.limits, strict=True)
        return Spread.from_values([f / n if n else math.nan for f, n in pairs])

    @property
    def is_met(self) -> bool | None:
        """None without a target."""
        if self.target is None:
            return None
        measured = self.ratio if self.target.of == "ratio" else self.figure
        return self.target.is_met_by(measured.median)


class Bench(Protocol):
    def __call__(self, *, quick: bool) -> AsyncIterator[Result]:
        """Yields rows; the quick ones, of a few seconds, prove nothing."""
