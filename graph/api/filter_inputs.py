"""The input types that select and sort nodes.

Each `to_` method returns the type that `db` takes, or raises BadInput for a value out of bounds.
"""

from collections.abc import Iterable
from typing import TypeVar

import orjson
import strawberry

from db.core.errors import BadInput
from db.core.jsonb_contains import count_containers_in_arrays
from db.registry import node_filter
from db.routing import matching
from graph.api.enums import NodeOrder, NodeRole, NodeStatus, NodeType, OrderDirection
from graph.api.fields import optional
from graph.api.scalars import JSON
from graph.core import validation
from graph.core.validation import MAX_DOCUMENT_BYTES, MAX_REQUIREMENT_BYTES

ValueT = TypeVar("ValueT")


@strawberry.input(description="The labels that a node must, may or must not have.")
class LabelSelector:
    all: list[str] | None = optional("The node has all of these labels.")
    any: list[str] | None = optional("The node has at least one of these labels.")
    none: list[str] | None = optional("The node has none of these labels.")

    def to_selector(self, path: str) -> node_filter.LabelSelector:
        return node_filter.LabelSelector(
            all=validation.check_optional(validation.check_search_values, f"{path}.all", self.all),
            any=validation.check_optional(validation.check_search_values, f"{path}.any", self.any),
            none=validation.check_optional(
                validation.check_search_values, f"{path}.none", self.none
            ),
        )


@strawberry.input(description="Selects nodes. A node must meet all conditions that are given.")
class NodeFilter:
    node_ids: list[str] | None = optional("The node has one of these node ids.")
    roles: list[NodeRole] | None = optional("The node has one of these roles.")
    types: list[NodeType] | None = optional("The node has one of these types.")
    statuses: list[NodeStatus] | None = optional(
        "The node has one of these statuses. For a status change, the new status is one of these."
    )
    labels: LabelSelector | None = optional("The node has matching labels.")
    capabilities: JSON | None = optional(
        "The node's capabilities contain this JSON (PostgreSQL @>)."
    )
    profile: str | None = optional("The node or its role has an enabled profile of this name.")
    search: str | None = optional(
        "The node id, name or hostname contains this text, in upper or lower case."
    )

    def to_filter(self) -> node_filter.NodeFilter:
        path = "filter"
        return node_filter.NodeFilter(
            node_ids=validation.check_optional(
                validation.check_search_values, f"{path}.nodeIds", self.node_ids
            ),
            roles=_remove_duplicates(self.roles),
            types=_remove_duplicates(self.types),
            statuses=_remove_duplicates(self.statuses),
            labels=None if self.labels is None else self.labels.to_selector(f"{path}.labels"),
            capabilities=validation.check_optional(
                _encode_document, f"{path}.capabilities", self.capabilities
            ),
            profile=validation.check_optional(
                validation.check_search_value, f"{path}.profile", self.profile
            ),
            search=validation.check_optional(
                validation.check_search_value, f"{path}.search", self.search
            ),
        )


@strawberry.input(description="The requirements of a router. An absent field requires nothing.")
class NodeRequirements:
    roles: list[NodeRole] | None = optional("The node has one of these roles.")
    types: list[NodeType] | None = optional("The node has one of these types.")
    labels: LabelSelector | None = optional("The node has matching labels.")
    capabilities: JSON | None = optional(
        "The node's capabilities contain this JSON (PostgreSQL @>): at most 4 KiB, and at most"
        " 32 objects and arrays within arrays."
    )
    model: str | None = optional("The node serves this model, as an entry of capabilities.models.")
    min_memory_available_mb: float | None = optional(
        "The memory available on the node now, in MB, is at least this."
    )
    min_gpu_memory_free_mb: float | None = optional(
        "The memory free on one GPU now, in MB, is at least this."
    )
    max_cpu_percent: float | None = optional(
        "The CPU utilization now, in percent, 0 to 100, is at most this."
    )
    include_degraded: bool = strawberry.field(
        description="Whether DEGRADED nodes meet the requirements.", default=False
    )

    def to_requirements(self) -> matching.Requirements:
        path = "require"
        return matching.Requirements(
            roles=_remove_duplicates(self.roles),
            types=_remove_duplicates(self.types),
            labels=None if self.labels is None else self.labels.to_selector(f"{path}.labels"),
            capabilities=validation.check_optional(
                _encode_requirement, f"{path}.capabilities", self.capabilities
            ),
            model=validation.check_optional(
                validation.check_search_value, f"{path}.model", self.model
            ),
            min_memory_available_mb=validation.check_number(
                f"{path}.minMemoryAvailableMb", self.min_memory_available_mb
            ),
            min_gpu_memory_free_mb=validation.check_number(
                f"{path}.minGpuMemoryFreeMb", self.min_gpu_memory_free_mb
            ),
            max_cpu_percent=validation.check_number(f"{path}.maxCpuPercent", self.max_cpu_percent),
            include_degraded=self.include_degraded,
        )


@strawberry.input(name="NodeOrder", description="The order of a list of nodes.")
class NodeOrderInput:
    field: NodeOrder = strawberry.field(description="The field by which the list is sorted.")
    direction: OrderDirection = strawberry.field(
        description="The direction of the sort.", default=OrderDirection.ASC
    )


def _remove_duplicates(values: Iterable[ValueT] | None) -> tuple[ValueT, ...] | None:
    """Return each value once, so that 40,000 equal values of an enum are one SQL parameter."""
    return None if values is None else tuple(dict.fromkeys(values))


def _encode_document(path: str, value: object, max_bytes: int = MAX_DOCUMENT_BYTES) -> str:
    """Return the canonical JSON of a document.

    Raises: BadInput: the document is not an object, or larger than `max_bytes`.
    """
    document = validation.check_document(path, value, max_bytes)
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS).decode()


def _encode_requirement(path: str, value: object) -> str:
    """Return the canonical JSON of a document that is compared with those of all nodes.

    Raises: BadInput: the document is not an object, larger than MAX_REQUIREMENT_BYTES, or has more
    than MAX_CONTAINERS_IN_ARRAYS.
    """
    text = _encode_document(path, value, MAX_REQUIREMENT_BYTES)
    if count_containers_in_arrays(value) > node_filter.MAX_CONTAINERS_IN_ARRAYS:
        problem = (
            f"must have at most {node_filter.MAX_CONTAINERS_IN_ARRAYS} objects and arrays"
            " within arrays"
        )
        raise BadInput(path, problem)
    return text
