"""Requirements of routers, scores of candidates, and jsonb's containment."""

import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations, islice
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.core.enums import NodeRanking, NodeRole, NodeStatus, NodeType
from db.core.jsonb_contains import contains
from db.core.turns import run_to_end
from db.registry.node_filter import LabelSelector
from db.routing.candidates import Candidate, extract_models, make_candidate
from db.routing.matching import Requirements, explain_exclusions, partition
from db.routing.scoring import HALF_SCORE_MB, rank
from tests.support.json_documents import DOCUMENTS, TEXTS

NODE = Candidate(
    UUID(int=1),
    "node-1",
    NodeStatus.ONLINE,
    NodeRole.DEVELOPMENT,
    NodeType.WORKER,
    labels=frozenset({"spot", "eu"}),
    models=frozenset({"llama3", "qwen"}),
    capabilities='{"os": "linux", "models": ["llama3", {"name": "qwen"}], "gpus": 2}',
    cpu_percent=93.5,
    memory_percent=40.0,
    memory_available_mb=512.0,
    gpu_percent=10.0,
    gpu_memory_free_mb=9120.0,
)
UNMEASURED = replace(
    NODE,
    cpu_percent=None,
    memory_percent=None,
    memory_available_mb=None,
    gpu_percent=None,
    gpu_memory_free_mb=None,
)


def list_unmet_requirements(requirements: Requirements, candidate: Candidate) -> list[str]:
    [lines] = run_to_end(explain_exclusions(requirements, [candidate]))
    return lines


def compute_score(subject: Candidate, ranking: NodeRanking) -> float:
    [(_, scored)] = rank([subject], ranking)
    return scored


def test_containment_of_the_largest_documents_is_computed_in_time() -> None:
    wide = [[i] for i in range(9000)]
    disjoint = [[-i] for i in range(1, 9000)]
    deep: Any = 1
    for _ in range(31):
        deep = [deep, 1]
    many = [list(chosen) for chosen in islice(combinations(range(16), 12), 1800)]
    few = [list(chosen) for chosen in islice(combinations(range(16), 6), 3400)]
    fan: Any = list(range(4))
    other_fan: Any = [5]
    for _ in range(5):
        fan, other_fan = [fan] * 6, [other_fan] * 6
    started_at = time.process_time()
    assert contains(wide, wide)
    assert not contains(wide, disjoint)
    assert not contains(wide, [*wide, [-1]])
    assert contains(deep, deep)
    assert not contains([fan], [other_fan])
    assert contains(many, few[:1000]) is all(
        any(set(part) <= set(whole) for whole in many) for part in few[:1000]
    )
    # Comparing pair by pair takes more than a minute.
    assert time.process_time() - started_at < 20


@pytest.mark.parametrize(
    ("requirements", "node", "reasons"),
    [
        (Requirements(), NODE, []),
        (Requirements(), UNMEASURED, []),
        (Requirements(), replace(NODE, status=NodeStatus.OFFLINE), ["is OFFLINE"]),
        (Requirements(), replace(NODE, status=NodeStatus.MAINTENANCE), ["is in MAINTENANCE"]),
        (Requirements(), replace(NODE, status=NodeStatus.DEGRADED), ["is DEGRADED"]),
        (Requirements(include_degraded=True), replace(NODE, status=NodeStatus.DEGRADED), []),
        (
            Requirements(include_degraded=True),
            replace(NODE, status=NodeStatus.OFFLINE),
            ["is OFFLINE"],
        ),
        (Requirements(roles=(NodeRole.DEVELOPMENT,)), NODE, []),
        (
            Requirements(roles=(NodeRole.PRODUCTION, NodeRole.BACKUP)),
            NODE,
            ["has role DEVELOPMENT, needs PRODUCTION or BACKUP"],
        ),
        (Requirements(roles=()), NODE, ["has role DEVELOPMENT, needs one of none"]),
        (Requirements(types=(NodeType.ROUTER,)), NODE, ["has type WORKER, needs ROUTER"]),
        (Requirements(types=()), NODE, ["has type WORKER, needs one of none"]),
        (Requirements(labels=LabelSelector()), NODE, []),
        (Requirements(labels=LabelSelector(all=("eu",), any=("eu", "us"), none=("x",))), NODE, []),
        (Requirements(labels=LabelSelector(all=(), none=())), NODE, []),
        (Requirements(labels=LabelSelector(all=("gpu", "eu"))), NODE, ["lacks label gpu"]),
        (Requirements(labels=LabelSelector(all=("us", "gpu"))), NODE, ["lacks labels gpu, us"]),
        (
            Requirements(labels=LabelSelector(any=("b", "a"))),
            NODE,
            ["has none of the labels a, b"],
        ),
        (Requirements(labels=LabelSelector(any=())), NODE, ["needs a label, one of none"]),
        (Requirements(labels=LabelSelector(none=("spot", "x"))), NODE, ["has label spot"]),
        (
            Requirements(labels=LabelSelector(all=("1", "2", "3", "4", "5", "6", "7", "7"))),
            NODE,
            ["lacks labels 1, 2, 3, 4, 5 and 2 more"],
        ),
        (Requirements(labels=LabelSelector(all=("a\nb",))), NODE, ["lacks label 'a\\nb'"]),
        (Requirements(model="qwen"), NODE, []),
        (Requirements(model="mistral"), NODE, ["does not serve model mistral"]),
        (Requirements(model=""), NODE, ["does not serve model ''"]),
        (Requirements(capabilities='{"gpus":2.0,"models":["llama3"]}'), NODE, []),
        (
            Requirements(capabilities='{"gpus":4,"models":["x"],"os":"linux"}'),
            NODE,
            ['capabilities do not contain {"gpus":4,"models":["x"]}'],
        ),
        (
            Requirements(capabilities='["linux"]'),
            NODE,
            ['capabilities do not contain ["linux"]'],
        ),
        (Requirements(min_gpu_memory_free_mb=9120), NODE, []),
        (
            Requirements(min_gpu_memory_free_mb=16000.0),
            NODE,
            ["needs 16000 MB on one GPU, has 9120"],
        ),
        (
            Requirements(min_gpu_memory_free_mb=16000),
            UNMEASURED,
            ["needs 16000 MB on one GPU, has none measured"],
        ),
        (Requirements(min_gpu_memory_free_mb=0.0), NODE, []),
        (
            Requirements(min_gpu_memory_free_mb=0.0),
            UNMEASURED,
            ["needs 0 MB on one GPU, has none measured"],
        ),
        (
            Requirements(min_memory_available_mb=8000.5),
            NODE,
            ["needs 8000.5 MB of memory available, has 512"],
        ),
        (
            Requirements(min_memory_available_mb=512.3),
            replace(NODE, memory_available_mb=512.2871093),
            ["needs 512.3 MB of memory available, has 512.2871093"],
        ),
        (
            Requirements(min_memory_available_mb=8000),
            replace(NODE, memory_available_mb=512.2871093),
            ["needs 8000 MB of memory available, has 512.3"],
        ),
        (Requirements(max_cpu_percent=93.5), NODE, []),
        (Requirements(max_cpu_percent=80.0), NODE, ["needs CPU at most 80 %, has 93.5"]),
        (
            Requirements(max_cpu_percent=80),
            replace(NODE, cpu_percent=80.04),
            ["needs CPU at most 80 %, has 80.04"],
        ),
        (
            Requirements(max_cpu_percent=80),
            UNMEASURED,
            ["needs CPU at most 80 %, has none measured"],
        ),
    ],
)
def test_each_unmet_requirement_of_a_node_is_listed(
    requirements: Requirements, node: Candidate, reasons: list[str]
) -> None:
    assert list_unmet_requirements(requirements, node) == reasons


def test_reasons_have_a_fixed_order() -> None:
    requirements = Requirements(
        roles=(NodeRole.BACKUP,),
        types=(NodeType.ROUTER,),
        labels=LabelSelector(all=("gpu",), any=("us",), none=("spot",)),
        capabilities='{"os":"plan9"}',
        model="mistral",
        min_memory_available_mb=1000,
        min_gpu_memory_free_mb=10000,
        max_cpu_percent=50,
    )
    assert list_unmet_requirements(requirements, replace(NODE, status=NodeStatus.DEGRADED)) == [
        "is DEGRADED",
        "has role DEVELOPMENT, needs BACKUP",
        "has type WORKER, needs ROUTER",
        "lacks label gpu",
        "has none of the labels us",
        "has label spot",
        "does not serve model mistral",
        "needs 1000 MB of memory available, has 512",
        "needs 10000 MB on one GPU, has 9120",
        "needs CPU at most 50 %, has 93.5",
        'capabilities do not contain {"os":"plan9"}',
    ]


def test_a_reason_is_one_line_of_bounded_length() -> None:
    requirements = Requirements(
        labels=LabelSelector(
            all=tuple(f"{i}" * 255 for i in range(1000)),
            any=("\u2028",),
        ),
        capabilities=orjson.dumps({f"k{i}": "\u2028" for i in range(3000)}).decode(),
        model="m" * 255,
    )
    reasons = list_unmet_requirements(requirements, NODE)
    assert len(reasons) == 4
    assert all(reason.isprintable() and len(reason) < 700 for reason in reasons)


METRICS = {
    "cpu_percent": 12.5,
    "memory_percent": 40,
    "memory_available_mb": 8000,
    "disk_percent": 3,
    "gpus": [
        {"name": "a", "utilization_percent": 80, "memory_total_mb": 24000, "memory_free_mb": 100},
        {"name": "b", "utilization_percent": 40, "memory_total_mb": None, "memory_free_mb": 900.5},
        {"name": "c", "utilization_percent": None, "memory_free_mb": None},
    ],
}


def make_measured(capabilities: str, metrics: Mapping[str, Any] | None) -> Candidate:
    return make_candidate(
        NODE.id,
        NODE.node_id,
        NODE.status,
        NODE.role,
        NODE.type,
        labels=["eu", "spot"],
        capabilities=capabilities,
        metrics=metrics,
    )


def test_a_candidate_is_built_from_the_row_and_the_latest_metrics_of_a_node() -> None:
    assert make_measured(NODE.capabilities, METRICS) == replace(
        NODE,
        cpu_percent=12.5,
        memory_percent=40,
        memory_available_mb=8000,
        gpu_percent=60,
        gpu_memory_free_mb=900.5,
    )
    assert (
        make_measured(NODE.capabilities, None) == make_measured(NODE.capabilities, {}) == UNMEASURED
    )


@pytest.mark.parametrize(
    "metrics",
    [
        {"cpu_percent": "12", "memory_percent": True, "memory_available_mb": None, "gpus": {}},
        {"cpu_percent": [], "gpus": [1, None, "gpu", [], {"memory_free_mb": "900"}, {}]},
        {"gpus": None},
    ],
)
def test_metrics_of_a_wrong_type_count_as_not_measured(metrics: dict[str, Any]) -> None:
    assert make_measured(NODE.capabilities, metrics) == UNMEASURED


@pytest.mark.parametrize(
    ("capabilities", "models"),
    [
        ({"models": ["llama3", {"name": "qwen", "context": 4096}, "llama3"]}, {"llama3", "qwen"}),
        ({"models": [1, None, True, [], ["x"], {}, {"name": 1}, {"name": ["x"]}, "y"]}, {"y"}),
        ({"models": "llama3"}, set()),
        ({"models": {"name": "llama3"}}, set()),
        ({"models": None}, set()),
        ({}, set()),
        (["models"], set()),
        (None, set()),
    ],
)
def test_models_are_read_from_strings_and_from_objects_with_a_name(
    capabilities: Any, models: set[str]
) -> None:
    assert extract_models(capabilities) == models


def test_candidates_with_the_same_labels_share_them() -> None:
    first, second = (make_measured('{"models": ["only-here"]}', None) for _ in range(2))
    assert first.labels is second.labels
    assert first.models is second.models


LABELS = st.sampled_from(["gpu", "spot", "eu"])
PERCENTS = st.none() | st.sampled_from([0.0, 50.0, 400.0, -1.0]) | st.floats(0, 100)
MEGABYTES = st.none() | st.sampled_from([0, 8000, 16384.0, 1e15, -1.0]) | st.floats(0, 1e6)
CAPABILITIES = st.dictionaries(st.sampled_from(["models", "os"]), DOCUMENTS, max_size=2)
CANDIDATES = st.builds(
    lambda capabilities, **parts: Candidate(
        capabilities=orjson.dumps(capabilities).decode(),
        models=extract_models(capabilities),
        id=uuid4(),
        **parts,
    ),
    capabilities=CAPABILITIES,
    node_id=st.text("abc", min_size=1, max_size=3),
    status=st.sampled_from(NodeStatus),
    role=st.sampled_from(NodeRole),
    type=st.sampled_from(NodeType),
    labels=st.frozensets(LABELS),
    cpu_percent=PERCENTS,
    memory_percent=PERCENTS,
    memory_available_mb=MEGABYTES,
    gpu_percent=PERCENTS,
    gpu_memory_free_mb=MEGABYTES,
)
FLEETS = st.lists(CANDIDATES, max_size=8, unique_by=lambda node: node.node_id)
SOME_LABELS = st.none() | st.lists(LABELS, max_size=2).map(tuple)
REQUIREMENT_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "roles": st.lists(st.sampled_from(NodeRole), max_size=3).map(tuple),
    "types": st.lists(st.sampled_from(NodeType), max_size=3).map(tuple),
    "labels": st.builds(LabelSelector, all=SOME_LABELS, any=SOME_LABELS, none=SOME_LABELS),
    "capabilities": CAPABILITIES.map(lambda document: orjson.dumps(document).decode()),
    "model": TEXTS,
    "min_memory_available_mb": st.floats(0, 1e6),
    "min_gpu_memory_free_mb": st.floats(0, 1e6),
    "max_cpu_percent": st.floats(0, 100),
}
REQUIREMENTS = st.fixed_dictionaries({}, optional=REQUIREMENT_VALUES).flatmap(
    lambda parts: st.booleans().map(
        lambda degraded: Requirements(**parts, include_degraded=degraded)
    )
)


@given(FLEETS, REQUIREMENTS)
def test_a_candidate_has_no_reasons_and_every_other_node_has_one(
    fleet: list[Candidate], requirements: Requirements
) -> None:
    candidates, excluded = run_to_end(partition(requirements, fleet))
    assert candidates == [node for node in fleet if not list_unmet_requirements(requirements, node)]
    assert excluded == [node for node in fleet if list_unmet_requirements(requirements, node)]


@given(CANDIDATES, REQUIREMENTS, st.sampled_from(sorted(REQUIREMENT_VALUES)))
def test_a_node_meets_requirements_when_it_meets_each_of_them(
    node: Candidate, requirements: Requirements, part: str
) -> None:
    removed: dict[str, Any] = {part: None}
    others = replace(requirements, **removed)
    single = Requirements(
        **{part: getattr(requirements, part)}, include_degraded=requirements.include_degraded
    )
    reasons = list_unmet_requirements(requirements, node)
    assert set(list_unmet_requirements(others, node)) <= set(reasons)
    assert set(list_unmet_requirements(single, node)) <= set(reasons)
    assert set(reasons) == set(list_unmet_requirements(others, node)) | set(
        list_unmet_requirements(single, node)
    )


@given(CANDIDATES, REQUIREMENTS)
def test_a_reason_never_shows_a_number_that_meets_the_requirement(
    node: Candidate, requirements: Requirements
) -> None:
    for reason in list_unmet_requirements(requirements, node):
        numbers = [float(word) for word in reason.replace(",", "").split() if _is_number(word)]
        if " MB " in reason and "none measured" not in reason:
            minimum, value = numbers
            assert value < minimum
        if "CPU" in reason and "none measured" not in reason:
            maximum, value = numbers
            assert value > maximum


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("ranking", "node", "expected"),
    [
        (NodeRanking.LEAST_LOADED, UNMEASURED, 0),
        (NodeRanking.LEAST_LOADED, replace(UNMEASURED, cpu_percent=0.0), 1),
        (NodeRanking.LEAST_LOADED, replace(UNMEASURED, cpu_percent=400.0), 0),
        (NodeRanking.LEAST_LOADED, replace(UNMEASURED, cpu_percent=10.0, memory_percent=50.0), 0.7),
        (
            NodeRanking.LEAST_LOADED,
            replace(UNMEASURED, cpu_percent=10.0, memory_percent=50.0, gpu_percent=90.0),
            0.5,
        ),
        (
            NodeRanking.LEAST_LOADED,
            replace(UNMEASURED, cpu_percent=20.0, status=NodeStatus.DEGRADED),
            0.4,
        ),
        (NodeRanking.MOST_FREE_MEMORY, UNMEASURED, 0),
        (NodeRanking.MOST_FREE_MEMORY, replace(UNMEASURED, memory_available_mb=HALF_SCORE_MB), 0.5),
        (
            NodeRanking.MOST_FREE_MEMORY,
            replace(UNMEASURED, memory_available_mb=3.0 * HALF_SCORE_MB),
            0.75,
        ),
        (NodeRanking.MOST_FREE_GPU_MEMORY, UNMEASURED, 0),
        (
            NodeRanking.MOST_FREE_GPU_MEMORY,
            replace(UNMEASURED, gpu_memory_free_mb=HALF_SCORE_MB),
            0.5,
        ),
    ],
)
def test_a_score_follows_its_formula(
    ranking: NodeRanking, node: Candidate, expected: float
) -> None:
    assert compute_score(node, ranking) == pytest.approx(expected)


def test_equal_scores_rank_online_nodes_first_and_then_by_node_id() -> None:
    fleet = [
        replace(UNMEASURED, node_id="b"),
        replace(UNMEASURED, node_id="a", status=NodeStatus.DEGRADED),
        replace(UNMEASURED, node_id="c"),
        replace(UNMEASURED, node_id="d", cpu_percent=50.0),
    ]
    assert [node.node_id for node, _ in rank(fleet, NodeRanking.LEAST_LOADED)] == list("dbca")


@given(FLEETS.flatmap(lambda fleet: st.tuples(st.just(fleet), st.permutations(fleet))))
def test_a_ranking_is_total_and_a_score_depends_only_on_its_node(
    fleets: tuple[list[Candidate], list[Candidate]],
) -> None:
    fleet, shuffled = fleets
    for ranking in NodeRanking:
        best_first = rank(fleet, ranking)
        assert best_first == rank(shuffled, ranking)
        assert best_first == [(node, compute_score(node, ranking)) for node, _ in best_first]
        scores = [scored for _, scored in best_first]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= scored <= 1 for scored in scores)
        assert sorted(node.node_id for node, _ in best_first) == sorted(n.node_id for n in fleet)


@given(CANDIDATES, st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_node_with_more_capacity_never_scores_less(
    node: Candidate, first: float, second: float
) -> None:
    def replace_metric(attribute: str, value: float) -> Candidate:
        changed: dict[str, Any] = {attribute: value}
        return replace(node, **changed)

    less, more = sorted((first, second))
    for ranking, attribute in (
        (NodeRanking.MOST_FREE_MEMORY, "memory_available_mb"),
        (NodeRanking.MOST_FREE_GPU_MEMORY, "gpu_memory_free_mb"),
    ):
        worse, better = replace_metric(attribute, less), replace_metric(attribute, more)
        assert compute_score(worse, ranking) <= compute_score(better, ranking)
    for attribute in ("cpu_percent", "memory_percent", "gpu_percent"):
        worse, better = replace_metric(attribute, more / 1e4), replace_metric(attribute, less / 1e4)
        assert compute_score(worse, NodeRanking.LEAST_LOADED) <= compute_score(
            better, NodeRanking.LEAST_LOADED
        )
