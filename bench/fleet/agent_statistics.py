"""What the agents of a fleet have met, by phases of the story."""

import asyncio
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from agent.client import RefusedError, RegistryAwayError
from bench.processes import Busy

Failure = RegistryAwayError | RefusedError


@dataclass
class Phase:
    """`errors` are those after which the agents tried again by themselves."""

    name: str
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)
    given_up: Counter[str] = field(default_factory=Counter)
    lags: "array[float]" = field(default_factory=lambda: array("d"))
    """By how much the load itself was late, as it looked now and then."""
    seconds: float = 0.0
    busy: Busy = Busy(0.0, 0.0, 0.0)  # noqa: RUF009  # it cannot be altered


def percentile(seconds: Sequence[float], percent: float) -> float:
    """In milliseconds; 0 where there is nothing."""
    if not seconds:
        return 0.0
    ordered = sorted(seconds)
    return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Tally:
    """Counts in the phase that has begun last."""

    def __init__(self) -> None:
        self.phase = Phase("")
        self._missed: set[str] = set()
        self._all_back = asyncio.Event()

    def begin(self, name: str) -> Phase:
        self.phase = Phase(name)
        return self.phase

    def answered(self, node_id: str, seconds: float) -> None:
        self.phase.latencies.append(seconds)
        self.let_go(node_id)

    def failed(self, failure: Failure) -> None:
        self.phase.errors[_label(failure)] += 1

    def gave_up(self, failure: Failure) -> None:
        """The same failure was counted before as one that is tried again."""
        self.phase.errors[_label(failure)] -= 1
        self.phase.given_up[_label(failure)] += 1

    def died(self, error: Exception) -> None:
        """Of what no agent should die of."""
        self.phase.given_up[f"died: {error!r}"] += 1

    def miss(self, node_ids: set[str]) -> None:
        """Until each of them was answered."""
        self._missed = set(node_ids)
        self._all_back.clear()

    def let_go(self, node_id: str) -> None:
        """It is missed no more: it was answered, or it is not there to ask."""
        if node_id in self._missed:
            self._missed.remove(node_id)
            if not self._missed:
                self._all_back.set()

    async def all_back(self, within_seconds: float) -> int:
        """How many are still missed then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self._all_back.wait()
        return len(self._missed)


def _label(failure: Failure) -> str:
    if isinstance(failure, RefusedError):
        return failure.code or failure.message
    return f"away: {failure.reason}"
