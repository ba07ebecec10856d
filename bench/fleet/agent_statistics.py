"""What the agents of a fleet have met, by phases of the story."""

import asyncio
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from agent.errors import RegistryUnavailableError, RequestRejectedError
from bench.processes import CpuUsage

Failure = RegistryUnavailableError | RequestRejectedError


@dataclass
class Phase:
    """`errors` are those after which the agents tried again by themselves."""

    name: str
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)
    fatal_errors: Counter[str] = field(default_factory=Counter)
    lags: "array[float]" = field(default_factory=lambda: array("d"))
    """By how much the load itself was late, as it looked now and then."""
    seconds: float = 0.0
    cpu: CpuUsage = CpuUsage(0.0, 0.0, 0.0)  # noqa: RUF009  # it cannot be altered


def compute_percentile(seconds: Sequence[float], percent: float) -> float:
    """In milliseconds; 0 where there is nothing."""
    if not seconds:
        return 0.0
    ordered = sorted(seconds)
    return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class AgentStatistics:
    """Counts in the phase that has begun last."""

    def __init__(self) -> None:
        self.phase = Phase("")
        self._expected: set[str] = set()
        self._all_answered = asyncio.Event()

    def begin_phase(self, name: str) -> Phase:
        self.phase = Phase(name)
        return self.phase

    def record_answer(self, node_id: str, seconds: float) -> None:
        self.phase.latencies.append(seconds)
        self.stop_expecting(node_id)

    def record_failure(self, failure: Failure) -> None:
        self.phase.errors[_format_failure(failure)] += 1

    def record_refusal(self, failure: Failure) -> None:
        """The same failure was counted before as one that is tried again."""
        self.phase.errors[_format_failure(failure)] -= 1
        self.phase.fatal_errors[_format_failure(failure)] += 1

    def record_crash(self, error: Exception) -> None:
        """Of what no agent should die of."""
        self.phase.fatal_errors[f"died: {error!r}"] += 1

    def expect_answers(self, node_ids: set[str]) -> None:
        """Until each of them was answered."""
        self._expected = set(node_ids)
        self._all_answered.clear()

    def stop_expecting(self, node_id: str) -> None:
        """It is missed no more: it was answered, or it is not there to ask."""
        if node_id in self._expected:
            self._expected.remove(node_id)
            if not self._expected:
                self._all_answered.set()

    async def wait_for_answers(self, within_seconds: float) -> int:
        """How many are still missed then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self._all_answered.wait()
        return len(self._expected)


def _format_failure(failure: Failure) -> str:
    if isinstance(failure, RequestRejectedError):
        return failure.code or failure.message
    return f"away: {failure.reason}"
