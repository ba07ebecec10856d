"""The input types that say which nodes are meant; `checked` turns each into what `db` takes."""

from collections.abc import Iterable
from typing import TypeVar

import orjson
import strawberry

from db.registry import node_filter
from db.routing import matching
from graph.api.enums import NodeOrder, NodeRole, NodeStatus, NodeType, OrderDirection
from graph.api.fields import optional
from graph.api.scalars import JSON
from graph.core import validation
from graph.core.validation import MAX_DOCUMENT_BYTES, MAX_REQUIREMENT_BYTES

ValueT = TypeVar("ValueT")


@strawberry.input(description="Which labels a node must, may or must not have.")
class LabelSelector:
    all: list[str] | None = optional("It has each of these.")
    any: list[str] | None = optional("It has at least one of these.")
    none: list[str] | None = optional("It has none of these.")

    def to_selector(self, path: str) -> node_filter.LabelSelector:
        return node_filter.LabelSelector(
            all=validation.check_optional(validation.check_search_values, f"{path}.all", self.all),
            any=validation.check_optional(validation.check_search_values, f"{path}.any", self.any),
            none=validation.check_optional(
                validation.check_search_values, f"{path}.none", self.none
            ),
        )


@strawberry.input(description="Which nodes are meant: all that is given must hold.")
class NodeFilter:
    node_ids: list[str] | None = optional("One of these node ids.")
    roles: list[NodeRole] | None = optional("One of these roles.")
    types: list[NodeType] | None = optional("One of these types.")
    statuses: list[NodeStatus] | None = optional(
        "One of these statuses; of a change, the status that it led to."
    )
    labels: LabelSelector | None = optional("Labels that fit.")
    capabilities: JSON | None = optional(
        "The node's capabilities contain this JSON (PostgreSQL @>)."
    )
    profile: str | None = optional("An enabled profile of this name, its own or its role's.")
    search: str | None = optional("Part of the node id, name or hostname, in any case.")

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


@strawberry.input(description="What a router needs of a node. An absent field asks for nothing.")
class NodeRequirements:
    roles: list[NodeRole] | None = optional("One of these roles.")
    types: list[NodeType] | None = optional("One of these types.")
    labels: LabelSelector | None = optional("Labels that fit.")
    capabilities: JSON | None = optional(
        "The node's capabilities contain this JSON (PostgreSQL @>), of at most 4 KiB."
    )
    model: str | None = optional("A model that the node serves: an entry of capabilities.models.")
    min_memory_available_mb: float | None = optional("Memory that is free now, in MB.")
    min_gpu_memory_free_mb: float | None = optional("On one GPU, free now.")
    max_cpu_percent: float | None = optional("How busy the processors may be now, 0 to 100.")
    include_degraded: bool = strawberry.field(
        description="Whether nodes that are DEGRADED will do.", default=False
    )

    def to_requirements(self) -> matching.Requirements:
        path = "require"
        return matching.Requirements(
            roles=_remove_duplicates(self.roles),
            types=_remove_duplicates(self.types),
            labels=None if self.labels is None else self.labels.to_selector(f"{path}.labels"),
            capabilities=validation.check_optional(
                _encode_document, f"{path}.capabilities", self.capabilities, MAX_REQUIREMENT_BYTES
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


@strawberry.input(name="NodeOrder", description="How a list of nodes is sorted.")
class NodeOrderInput:
    field: NodeOrder = strawberry.field(description="What by.")
    direction: OrderDirection = strawberry.field(
        description="Which end comes first.", default=OrderDirection.ASC
    )


def _remove_duplicates(values: Iterable[ValueT] | None) -> tuple[ValueT, ...] | None:
    """A value of an enum that is repeated 40,000 times is one parameter of a statement."""
    return None if values is None else tuple(dict.fromkeys(values))


def _encode_document(path: str, value: object, max_bytes: int = MAX_DOCUMENT_BYTES) -> str:
    """Return the canonical JSON of a document. Raises BadInput as `check_document` does."""
    document = validation.check_document(path, value, max_bytes)
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS).decode()
