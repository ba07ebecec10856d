"""The node filter: as a condition of SQL for lists, as a predicate in Python for live streams."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import orjson
from sqlalchemy import ColumnElement, and_, exists, or_, true

from db.core.enums import NodeRole, NodeStatus, NodeType
from db.core.jsonb_contains import compare, count_containers_in_arrays
from db.core.tables import NODE, NODE_PROFILE, ROLE_PROFILE
from db.core.turns import Steps

MAX_CAPABILITIES_IN_PYTHON = 4096
"""Length of the JSON text above which PostgreSQL evaluates `capabilities`."""

MAX_CONTAINERS_IN_ARRAYS = 32
"""Objects and arrays within arrays of `capabilities` above which PostgreSQL evaluates them.

Each may have to be compared with every value of a node's document.
"""

Predicate: TypeAlias = Callable[[Any, NodeStatus], Steps[bool]]
"""Takes a row with the attributes of Node, and the status that `statuses` is compared with."""

_QuickCheck: TypeAlias = Callable[[Any, NodeStatus], bool]


LabelCheck: TypeAlias = Callable[[Any], bool]
"""Takes a row of a node, or a candidate: anything with `labels`."""


class LabelChecks(NamedTuple):
    """The conditions of a label selector; None where it has none."""

    all: LabelCheck | None
    any: LabelCheck | None
    none: LabelCheck | None


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """Labels a node must have all of, at least one of, or none of.

    None places no condition; an empty `any` matches no node.
    """

    all: tuple[str, ...] | None = None
    any: tuple[str, ...] | None = None
    none: tuple[str, ...] | None = None

    def to_checks(self) -> LabelChecks:
        required = frozenset(self.all or ())
        some = frozenset(self.any or ())
        excluded = frozenset(self.none or ())
        return LabelChecks(
            None if self.all is None else lambda node: required.issubset(node.labels),
            None if self.any is None else lambda node: not some.isdisjoint(node.labels),
            None if self.none is None else lambda node: excluded.isdisjoint(node.labels),
        )


@dataclass(frozen=True, slots=True)
class NodeFilter:
    """Conditions that must all hold; an empty collection of ids, roles… matches no node.

    It is hashable, so that callers with equal filters can share one evaluation.
    """

    node_ids: tuple[str, ...] | None = None
    roles: tuple[NodeRole, ...] | None = None
    types: tuple[NodeType, ...] | None = None
    statuses: tuple[NodeStatus, ...] | None = None
    labels: LabelSelector | None = None
    capabilities: str | None = None
    """JSON text that a node's capabilities must contain, by PostgreSQL's `@>`."""
    profile: str | None = None
    """The name of an enabled profile of the node or of its role and type."""
    search: str | None = None
    """Part of the node id, name or hostname, in any case."""

    def to_condition(self, status: ColumnElement[Any] = NODE.status) -> ColumnElement[bool]:
        """Return the filter as a condition on `nodes`; rows of removed nodes can match it too.

        `statuses` is compared with `status`: for a change, that is the status it led to.
        """
        conditions: list[ColumnElement[bool]] = []
        if self.node_ids is not None:
            conditions.append(NODE.node_id.in_(self.node_ids))
        if self.roles is not None:
            conditions.append(NODE.node_role.in_(self.roles))
        if self.types is not None:
            conditions.append(NODE.node_type.in_(self.types))
        if self.statuses is not None:
            conditions.append(status.in_(self.statuses))
        if self.labels is not None:
            conditions.extend(_make_label_conditions(self.labels))
        if self.capabilities is not None:
            conditions.append(NODE.capabilities.contains(orjson.loads(self.capabilities)))
        if self.profile is not None:
            conditions.append(_make_profile_condition(self.profile))
        if self.search is not None:
            conditions.append(_make_search_condition(self.search))
        return and_(true(), *conditions)

    def to_predicate(self) -> Predicate:
        """Return the filter without its database part, to be evaluated on rows in memory."""
        checks = list(self._make_checks())
        capabilities = (
            orjson.loads(self.capabilities)
            if self.capabilities is not None and not self._has_large_capabilities()
            else None
        )

        def matches(node: Any, status: NodeStatus) -> Steps[bool]:
            if not all(check(node, status) for check in checks):
                return False
            return capabilities is None or (yield from compare(node.capabilities, capabilities))

        return matches

    def get_database_part(self) -> "NodeFilter | None":
        """Return the conditions that only the database can evaluate, None if there are none.

        A node's row does not hold its profiles; a search ignores case by the rules of the
        database's locale; large capabilities would take too long.
        """
        part = NodeFilter(
            capabilities=self.capabilities if self._has_large_capabilities() else None,
            profile=self.profile,
            search=self.search,
        )
        return None if part == EVERY_NODE else part

    def _has_large_capabilities(self) -> bool:
        return self.capabilities is not None and (
            len(self.capabilities) > MAX_CAPABILITIES_IN_PYTHON
            or count_containers_in_arrays(orjson.loads(self.capabilities))
            > MAX_CONTAINERS_IN_ARRAYS
        )

    def _make_checks(self) -> Iterator[_QuickCheck]:
        """Yield the checks of everything but the capabilities."""
        if self.node_ids is not None:
            node_ids = frozenset(self.node_ids)
            yield lambda node, _: node.node_id in node_ids
        if self.roles is not None:
            roles = frozenset(self.roles)
            yield lambda node, _: node.node_role in roles
        if self.types is not None:
            types = frozenset(self.types)
            yield lambda node, _: node.node_type in types
        if self.statuses is not None:
            statuses = frozenset(self.statuses)
            yield lambda _, status: status in statuses
        if self.labels is not None:
            for check in filter(None, self.labels.to_checks()):
                yield partial(_check_labels, check)


EVERY_NODE = NodeFilter()


def _check_labels(check: LabelCheck, node: Any, _status: NodeStatus) -> bool:
    return check(node)


def _make_label_conditions(labels: LabelSelector) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if labels.all is not None:
        conditions.append(NODE.labels.contains(list(labels.all)))
    if labels.any is not None:
        conditions.append(NODE.labels.overlap(list(labels.any)))
    if labels.none is not None:
        conditions.append(~NODE.labels.overlap(list(labels.none)))
    return conditions


def _make_search_condition(search: str) -> ColumnElement[bool]:
    columns = (NODE.node_id, NODE.node_name, NODE.hostname)
    return or_(*(column.icontains(search, autoescape=True) for column in columns))


def _make_profile_condition(name: str) -> ColumnElement[bool]:
    own_profile = exists().where(
        NODE_PROFILE.node_id == NODE.id, NODE_PROFILE.profile_name == name, NODE_PROFILE.enabled
    )
    role_profile = exists().where(
        ROLE_PROFILE.node_role == NODE.node_role,
        ROLE_PROFILE.node_type == NODE.node_type,
        ROLE_PROFILE.profile_name == name,
        ROLE_PROFILE.enabled,
    )
    return or_(own_profile, role_profile)
