"""The scores by which candidates are ranked: a router tries the best first."""

from collections.abc import Callable, Iterable, Mapping

from db.core.enums import NodeRanking, NodeStatus
from db.routing.candidates import Candidate

HALF_SCORE_MB = 16 * 1024
"""The free memory with a score of 0.5."""

_FULL = 100.0


def rank(candidates: Iterable[Candidate], ranking: NodeRanking) -> list[tuple[Candidate, float]]:
    """Return the candidates with their scores, best first.

    Of equal scores ONLINE comes before DEGRADED, then the lower node id. A score is from 0 to 1,
    higher is better, and depends on its candidate alone, so that it can be compared over time:

    - LEAST_LOADED: the mean of the free fractions of the CPU, the memory and the GPUs' time, as far
      as they are measured, like LeastAllocated of Kubernetes. By the busiest alone, memory that a
      loaded model fills permanently would hide the rest.
    - MOST_FREE_MEMORY and MOST_FREE_GPU_MEMORY (on one GPU): free / (free + 16 GiB). It grows with
      the amount, not the fraction, because a request takes an amount; and it separates 4 GiB from 8
      more than 404 from 408.

    A candidate without the measurement scores 0. The score of a DEGRADED node is halved, so it
    comes before others only if they are far worse.
    """
    get_score = _SCORES[ranking]
    scored = [
        (candidate, _discount_degraded(get_score(candidate), candidate)) for candidate in candidates
    ]
    scored.sort(key=lambda pair: (-pair[1], pair[0].status == NodeStatus.DEGRADED, pair[0].node_id))
    return scored


def _discount_degraded(value: float, candidate: Candidate) -> float:
    return value / 2 if candidate.status == NodeStatus.DEGRADED else value


def _score_idleness(candidate: Candidate) -> float:
    used, count = 0.0, 0
    for percent in (candidate.cpu_percent, candidate.memory_percent, candidate.gpu_percent):
        if percent is not None:
            used += percent if 0 <= percent <= _FULL else min(max(percent, 0.0), _FULL)
            count += 1
    return 1 - used / (count * _FULL) if count else 0.0


def _score_free_memory(free_mb: float | None) -> float:
    # In this form, because rounding of free / (free + …) can give more memory a lower score.
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
