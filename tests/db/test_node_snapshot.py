"""The rankings of the node snapshot, compared with a plain model over random fleets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from db.core.database import Database
from db.core.enums import NodeRanking, NodeRole, NodeStatus, NodeType
from db.registry.node_filter import LabelSelector
from db.routing.matching import Requirements
from graph.live.change_feed import ChangeFeed
from graph.live.node_snapshot import NodeSnapshot
from tests.support.fleet import clear, limit_examples, make_report, record, register

LABELS = st.lists(st.sampled_from(["gpu", "eu", "spot"]), max_size=3, unique=True)
MODELS = st.sampled_from(["llama", "qwen", "phi"])
FEW = st.sampled_from([0.0, 10.0, 50.0, 90.0])
MEMORY = st.sampled_from([0.0, 1000.0, 16384.0, 64000.0])


@dataclass(frozen=True)
class Subject:
    """A node of the model; `metrics` is None if it reported none."""

    role: NodeRole
    type: NodeType
    status: NodeStatus
    labels: list[str]
    models: list[str]
    os: str
    metrics: dict[str, Any] | None


GPUS = st.lists(
    st.fixed_dictionaries({"name": st.just("g")}, optional={"memory_free_mb": MEMORY}), max_size=2
)
SUBJECTS = st.builds(
    Subject,
    role=st.sampled_from(NodeRole),
    type=st.sampled_from(NodeType),
    status=st.sampled_from([NodeStatus.ONLINE, NodeStatus.ONLINE, *NodeStatus]),
    labels=LABELS,
    models=st.lists(MODELS, max_size=2, unique=True),
    os=st.sampled_from(["linux", "macos"]),
    metrics=st.none()
    | st.fixed_dictionaries(
        {},
        optional={
            "cpu_percent": FEW,
            "memory_percent": FEW,
            "memory_available_mb": MEMORY,
            "gpus": GPUS,
        },
    ),
)
SOME_LABELS = st.none() | LABELS.map(tuple)
REQUIREMENTS = st.builds(
    Requirements,
    roles=st.none() | st.lists(st.sampled_from(NodeRole), max_size=2).map(tuple),
    types=st.none() | st.lists(st.sampled_from(NodeType), max_size=2).map(tuple),
    labels=st.none() | st.builds(LabelSelector, all=SOME_LABELS, any=SOME_LABELS, none=SOME_LABELS),
    capabilities=st.none() | st.sampled_from(["{}", '{"os":"linux"}', '{"models":["llama"]}']),
    model=st.none() | MODELS,
    min_memory_available_mb=st.none() | MEMORY,
    min_gpu_memory_free_mb=st.none() | MEMORY,
    max_cpu_percent=st.none() | FEW,
    include_degraded=st.booleans(),
)
CONTAINED: dict[str, Callable[[Subject], bool]] = {
    "{}": lambda _: True,
    '{"os":"linux"}': lambda subject: subject.os == "linux",
    '{"models":["llama"]}': lambda subject: "llama" in subject.models,
}


def find_most_free_gpu_memory(metrics: dict[str, Any]) -> float | None:
    return max(
        (gpu["memory_free_mb"] for gpu in metrics.get("gpus", ()) if len(gpu) > 1), default=None
    )


def is_fit(requirements: Requirements, subject: Subject) -> bool:
    metrics = subject.metrics or {}
    labels = set(subject.labels)
    selector = requirements.labels or LabelSelector()
    return all(
        (
            subject.status
            in [NodeStatus.ONLINE] + [NodeStatus.DEGRADED] * requirements.include_degraded,
            requirements.roles is None or subject.role in requirements.roles,
            requirements.types is None or subject.type in requirements.types,
            selector.all is None or set(selector.all) <= labels,
            selector.any is None or bool(set(selector.any) & labels),
            selector.none is None or not set(selector.none) & labels,
            requirements.capabilities is None or CONTAINED[requirements.capabilities](subject),
            requirements.model is None or requirements.model in subject.models,
            is_enough(metrics.get("memory_available_mb"), requirements.min_memory_available_mb),
            is_enough(find_most_free_gpu_memory(metrics), requirements.min_gpu_memory_free_mb),
            requirements.max_cpu_percent is None
            or (
                "cpu_percent" in metrics and metrics["cpu_percent"] <= requirements.max_cpu_percent
            ),
        )
    )


def is_enough(free: float | None, needed: float | None) -> bool:
    return needed is None or (free is not None and free >= needed)


def compute_score(subject: Subject, ranking: NodeRanking) -> float:
    metrics = subject.metrics or {}
    used = [metrics[name] / 100 for name in ("cpu_percent", "memory_percent") if name in metrics]
    free = {
        NodeRanking.LEAST_LOADED: 1 - sum(used) / len(used) if used else 0.0,
        NodeRanking.MOST_FREE_MEMORY: score_free_memory(metrics.get("memory_available_mb")),
        NodeRanking.MOST_FREE_GPU_MEMORY: score_free_memory(find_most_free_gpu_memory(metrics)),
    }[ranking]
    return free / 2 if subject.status is NodeStatus.DEGRADED else free


def score_free_memory(free_mb: float | None) -> float:
    return (free_mb or 0) / ((free_mb or 0) + 16384)


async def write_subjects(database: Database, subjects: list[Subject]) -> None:
    async with database.write() as session:
        await clear(session)
    for number, subject in enumerate(subjects):
        await register(
            database,
            f"n{number}",
            role=subject.role,
            type=subject.type,
            labels=subject.labels,
            capabilities={"os": subject.os, "models": subject.models},
        )
        if subject.metrics is not None:
            await record(database, make_report(f"n{number}", metrics=subject.metrics))
    async with database.write() as session:
        await session.execute(
            text(
                "UPDATE nodes SET status = s.status"
                " FROM unnest(CAST(:names AS text[]), CAST(:statuses AS text[]))"
                " AS s (node_id, status) WHERE nodes.node_id = s.node_id"
            ),
            {
                "names": [f"n{number}" for number in range(len(subjects))],
                "statuses": [subject.status for subject in subjects],
            },
        )


@limit_examples(60)
@given(
    subjects=st.lists(SUBJECTS, max_size=8),
    requirement_sets=st.lists(REQUIREMENTS, min_size=1, max_size=4),
    ranking=st.sampled_from(NodeRanking),
    limit=st.integers(0, 8),
)
async def test_ranking_equals_that_of_a_plain_model(
    database: Database,
    subjects: list[Subject],
    requirement_sets: list[Requirements],
    ranking: NodeRanking,
    limit: int,
) -> None:
    await write_subjects(database, subjects)
    snapshot = NodeSnapshot(database, ChangeFeed(database, check_seconds=1, max_lag=1))
    subjects_by_id = {f"n{number}": subject for number, subject in enumerate(subjects)}
    for requirements in requirement_sets:
        fitting = {
            name for name, subject in subjects_by_id.items() if is_fit(requirements, subject)
        }
        result, _, _ = await snapshot.rank_candidates(requirements, ranking, limit)
        ranked = [(node.node_id, score) for node, score in result.candidates]
        names = {name for name, _ in ranked}
        scores = [score for _, score in ranked]
        assert names <= fitting
        assert len(ranked) == min(limit, len(fitting))
        assert scores == pytest.approx(
            [compute_score(subjects_by_id[name], ranking) for name, _ in ranked]
        )
        assert scores == sorted(scores, reverse=True)
        omitted_scores = [compute_score(subjects_by_id[name], ranking) for name in fitting - names]
        assert not scores or max(omitted_scores, default=0) <= scores[-1] + 1e-9
        excluded = [candidate.node_id for candidate in result.excluded]
        assert excluded == sorted(set(subjects_by_id) - fitting)
