"""Candidates for a router's question: of a node, only what requirements and scores depend on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID
from weakref import WeakValueDictionary

import orjson

from db.core.enums import NodeRole, NodeStatus, NodeType


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as the router's question judges it.

    A metric is None if the last heartbeat did not report it; memory is in MB. `capabilities` is
    JSON text: the parsed documents of a fleet would be millions of objects, through which the
    garbage collector goes without a pause.
    """

    id: UUID
    node_id: str
    status: NodeStatus
    role: NodeRole
    type: NodeType
    labels: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    capabilities: str = "{}"
    cpu_percent: float | None = None
    memory_percent: float | None = None
    memory_available_mb: float | None = None
    gpu_percent: float | None = None
    """The mean utilization of its GPUs."""
    gpu_memory_free_mb: float | None = None
    """The most free memory on one of its GPUs."""


def make_candidate(
    row_id: UUID,
    node_id: str,
    status: NodeStatus,
    role: NodeRole,
    node_type: NodeType,
    *,
    labels: Iterable[str],
    capabilities: str,
    metrics: Mapping[str, Any] | None,
) -> Candidate:
    """Return the candidate of a node with these columns and the metrics of its last heartbeat.

    Documents that were written by plain SQL may hold anything: values that are not of the
    documented type are ignored, as if they were absent.
    """
    reported = metrics or {}
    gpus = [gpu for gpu in _get_list(reported, "gpus") if isinstance(gpu, Mapping)]
    utilizations = _get_numbers(gpus, "utilization_percent")
    return Candidate(
        row_id,
        node_id,
        status,
        role,
        node_type,
        _share_set(frozenset(labels)),
        _share_set(extract_models(orjson.loads(capabilities))),
        capabilities,
        _to_number(reported.get("cpu_percent")),
        _to_number(reported.get("memory_percent")),
        _to_number(reported.get("memory_available_mb")),
        sum(utilizations) / len(utilizations) if utilizations else None,
        max(_get_numbers(gpus, "memory_free_mb"), default=None),
    )


def extract_models(capabilities: Any) -> frozenset[str]:
    """Return the names in `capabilities.models`, a list of names or of objects with a `name`."""
    entries = _get_list(capabilities, "models")
    names = (entry.get("name") if isinstance(entry, Mapping) else entry for entry in entries)
    return frozenset(name for name in names if isinstance(name, str))


_shared_sets: WeakValueDictionary[int, frozenset[str]] = WeakValueDictionary()


def _share_set(names: frozenset[str]) -> frozenset[str]:
    """Return one set for all candidates with the same names, to save memory.

    Most nodes of a fleet are configured alike.
    """
    shared = _shared_sets.setdefault(hash(names), names)
    return shared if shared == names else names


def _get_list(document: Any, key: str) -> list[Any]:
    value = document.get(key) if isinstance(document, Mapping) else None
    return value if isinstance(value, list) else []


def _get_numbers(documents: list[Mapping[str, Any]], key: str) -> list[float]:
    numbers = (_to_number(document.get(key)) for document in documents)
    return [number for number in numbers if number is not None]


def _to_number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
