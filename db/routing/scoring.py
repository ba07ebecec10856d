"""In which order a router should try the nodes that it may use: best first, by one score each."""

from collections.abc import Callable, Iterable, Mapping

from db.core.enums import NodeRanking, NodeStatus
from db.routing.candidates import Candidate

HALF_SCORE_MB = 16 * 1024
"""The free memory that scores 0.5."""

_FULL = 100.0


def rank(candidates: Iterable[Candidate], ranking: NodeRanking) -> list[tuple[Candidate, float]]:
    """Each with its score; of equal scores ONLINE comes before DEGRADED, then node_id decides.

    A score is from 0 to 1, higher is better, and of its candidate alone, so that it can be compared
    over time:

    - LEAST_LOADED: the mean of what is free, as parts of the whole, of the CPU, the memory and the
      GPUs' time, as far as they are measured. Kubernetes scores LeastAllocated nodes likewise: the
      busiest alone would hide the others behind a memory that a loaded model fills for good.
    - MOST_FREE_MEMORY and MOST_FREE_GPU_MEMORY (on one GPU): free / (free + 16 GiB). It grows with
      the amount, not with the part, for a request takes an amount; and it tells 4 GiB from 8 better
      than 404 from 408.

    What is not measured scores 0. A DEGRADED node scores half, so it comes first only before nodes
    that are far worse.
    """
    of = _SCORES[ranking]
    scored = [(candidate, _discount_degraded(of(candidate), candidate)) for candidate in candidates]
    scored.sort(key=lambda pair: (-pair[1], pair[0].status == NodeStatus.DEGRADED, pair[0].node_id))
    return scored


def _discount_degraded(value: float, candidate: Candidate) -> float:
    return value / 2 if candidate.status == NodeStatus.DEGRADED else value


def _score_idleness(candidate: Candidate) -> float:
    used, measured = 0.0, 0
    for percent in (candidate.cpu_percent, candidate.memory_percent, candidate.gpu_percent):
        if percent is not None:
            used += percent if 0 <= percent <= _FULL else min(max(percent, 0.0), _FULL)
            measured += 1
    return 1 - used / (measured * _FULL) if measured else 0.0


def _score_free_memory(free_mb: float | None) -> float:
    # Not as free / (free + …), which rounding would now and then make smaller for more.
    return 1 - HALF_SCORE_MB / (max(free_mb or 0.0, 0.0) + HALF_SCORE_MB)


_SCORES: Mapping[NodeRanking, Callable[[Candidate], float]] = {
    NodeRanking.LEAST_LOADED: _score_idleness,
    NodeRanking.MOST_FREE_MEMORY: lambda candidate: _score_free_memory(
        candidate.memory_available_mb
    ),
    NodeRanking.MOST_FREE_GPU_MEMORY: lambda candidate: _score_free_memory(
        candidate.gpu_memory_free_mb
    ),
}
