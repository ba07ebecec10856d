"""Which nodes are meant: one filter, one SQL condition, for lists, change logs and live streams."""

from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import ColumnElement, and_, exists, or_, true

from db.core.enums import NodeRole, NodeStatus, NodeType
from db.core.tables import NODE, NODE_PROFILE, ROLE_PROFILE


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """None asks for nothing; an empty `any` is met by no node."""

    all: tuple[str, ...] | None = None
    any: tuple[str, ...] | None = None
    none: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class NodeFilter:
    """Every part that is given must hold; an empty collection of ids, roles… is met by no node.

    Hashable, so that what one filter means is asked once, whoever uses it.
    """

    node_ids: tuple[str, ...] | None = None
    roles: tuple[NodeRole, ...] | None = None
    types: tuple[NodeType, ...] | None = None
    statuses: tuple[NodeStatus, ...] | None = None
    labels: LabelSelector | None = None
    capabilities: str | None = None
    """JSON text: what a node's capabilities must contain, by PostgreSQL's `@>`."""
    profile: str | None = None
    search: str | None = None

    def to_condition(self, status: ColumnElement[Any] = NODE.status) -> ColumnElement[bool]:
        """True of the rows of `nodes` that the filter means, those of removed nodes included.

        `status` is what `statuses` is about: of a change, the status that it led to.
        """
        terms: list[ColumnElement[bool]] = []
        if self.node_ids is not None:
            terms.append(NODE.node_id.in_(self.node_ids))
        if self.roles is not None:
            terms.append(NODE.node_role.in_(self.roles))
        if self.types is not None:
            terms.append(NODE.node_type.in_(self.types))
        if self.statuses is not None:
            terms.append(status.in_(self.statuses))
        if self.labels is not None:
            terms.extend(_make_label_conditions(self.labels))
        if self.capabilities is not None:
            terms.append(NODE.capabilities.contains(orjson.loads(self.capabilities)))
        if self.profile is not None:
            terms.append(_make_profile_condition(self.profile))
        if self.search is not None:
            terms.append(
                or_(
                    *(
                        column.icontains(self.search, autoescape=True)
                        for column in (NODE.node_id, NODE.node_name, NODE.hostname)
                    )
                )
            )
        return and_(true(), *terms)


EVERY_NODE = NodeFilter()


def _make_label_conditions(labels: LabelSelector) -> list[ColumnElement[bool]]:
    terms: list[ColumnElement[bool]] = []
    if labels.all is not None:
        terms.append(NODE.labels.contains(list(labels.all)))
    if labels.any is not None:
        terms.append(NODE.labels.overlap(list(labels.any)))
    if labels.none is not None:
        terms.append(~NODE.labels.overlap(list(labels.none)))
    return terms


def _make_profile_condition(name: str) -> ColumnElement[bool]:
    own = exists().where(
        NODE_PROFILE.node_id == NODE.id, NODE_PROFILE.profile_name == name, NODE_PROFILE.enabled
    )
    of_role = exists().where(
        ROLE_PROFILE.node_role == NODE.node_role,
        ROLE_PROFILE.node_type == NODE.node_type,
        ROLE_PROFILE.profile_name == name,
        ROLE_PROFILE.enabled,
    )
    return or_(own, of_role)
