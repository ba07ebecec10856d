"""Latencies and errors of the agents of a fleet, by phases of the scenario."""

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
    """What was counted in one phase of the scenario.

    Latencies and lags are in seconds. After `errors` the agents retried by themselves; a fatal
    error ended its agent.
    """

    name: str
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)
    fatal_errors: Counter[str] = field(default_factory=Counter)
    lags: "array[float]" = field(default_factory=lambda: array("d"))
    """Samples of how late the load's own event loop was."""
    seconds: float = 0.0
    cpu: CpuUsage = CpuUsage(0.0, 0.0, 0.0)  # noqa: RUF009  # it is frozen


def compute_percentile(seconds: Sequence[float], percent: float) -> float:
    """Return a percentile in milliseconds, or 0 without values."""
    if not seconds:
        return 0.0
    ordered = sorted(seconds)
    return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class AgentStatistics:
    """Counts answers and errors in the current phase, and knows which nodes still lack an answer.

    A node is expected from `expect_answers` until it is answered or stops.
    """

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
        """Count a failure after which the agent retries."""
        self.phase.errors[_format_failure(failure)] += 1

    def record_fatal_failure(self, failure: Failure) -> None:
        """Count a failure as fatal that `record_failure` counted before."""
        self.phase.errors[_format_failure(failure)] -= 1
        self.phase.fatal_errors[_format_failure(failure)] += 1

    def record_crash(self, error: Exception) -> None:
        """Count an exception that no agent should raise."""
        self.phase.fatal_errors[f"crashed: {error!r}"] += 1

    def expect_answers(self, node_ids: set[str]) -> None:
        """Expect an answer to each of these nodes, and to no others."""
        self._expected = set(node_ids)
        self._all_answered.clear()

    def stop_expecting(self, node_id: str) -> None:
        """Note that the node was answered, or is not running and sends no requests."""
        if node_id in self._expected:
            self._expected.remove(node_id)
            if not self._expected:
                self._all_answered.set()

    async def wait_for_answers(self, timeout_seconds: float) -> int:
        """Wait for all expected answers and return how many are missing after the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._all_answered.wait()
        return len(self._expected)


def _format_failure(failure: Failure) -> str:
    if isinstance(failure, RequestRejectedError):
        return failure.code or failure.message
    return f"unavailable: {failure.reason}"
