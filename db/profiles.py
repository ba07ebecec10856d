"""Profiles: what a node is set up to do, and what its role says it starts from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import and_, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from db.tables import NODE, NODE_PROFILE, ROLE_PROFILE, NodeProfile, RoleProfile
from db.values import ProfileType


@dataclass(frozen=True, slots=True)
class ProfileContent:
    name: str
    type: ProfileType
    config: Mapping[str, Any]
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class EffectiveProfile:
    name: str
    type: ProfileType
    config: Any
    from_role: bool
    from_node: bool


async def put(session: AsyncSession, node: UUID, contents: Sequence[ProfileContent]) -> None:
    """Makes or replaces the node's profiles of these names; one that says nothing new is kept."""
    if not contents:
        return
    statement = insert(NodeProfile).values(
        [
            {
                "node_id": node,
                "profile_name": content.name,
                "profile_type": content.type,
                "config": content.config,
                "enabled": content.enabled,
            }
            for content in sorted(contents, key=lambda content: content.name)
        ]
    )
    new = statement.excluded
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[NODE_PROFILE.node_id, NODE_PROFILE.profile_name],
            set_={
                "profile_type": new.profile_type,
                "config": new.config,
                "enabled": new.enabled,
                "version": NODE_PROFILE.version + 1,
                "updated_at": func.now(),
            },
            where=or_(
                NODE_PROFILE.profile_type != new.profile_type,
                NODE_PROFILE.config != new.config,
                NODE_PROFILE.enabled != new.enabled,
            ),
        )
    )


async def of_nodes(session: AsyncSession, nodes: Sequence[UUID]) -> dict[UUID, list[NodeProfile]]:
    """Each node's own profiles, by name."""
    found: dict[UUID, list[NodeProfile]] = {node: [] for node in nodes}
    rows = await session.scalars(
        select(NodeProfile)
        .where(NODE_PROFILE.node_id.in_(nodes))
        .order_by(NODE_PROFILE.node_id, NODE_PROFILE.profile_name)
    )
    for profile in rows:
        found[profile.node_id].append(profile)
    return found


async def effective(
    session: AsyncSession, nodes: Sequence[UUID]
) -> dict[UUID, list[EffectiveProfile]]:
    """For each node, by name: its role's enabled profiles with its own enabled ones merged over."""
    merged: dict[UUID, dict[str, EffectiveProfile]] = {node: {} for node in nodes}
    of_role = await session.execute(
        select(NODE.id, RoleProfile)
        .join(
            RoleProfile,
            and_(
                ROLE_PROFILE.node_role == NODE.node_role,
                ROLE_PROFILE.node_type == NODE.node_type,
                ROLE_PROFILE.enabled,
            ),
        )
        .where(NODE.id.in_(nodes))
    )
    for node, profile in of_role:
        merged[node][profile.profile_name] = EffectiveProfile(
            profile.profile_name,
            profile.profile_type,
            profile.config,
            from_role=True,
            from_node=False,
        )
    for node, own in (await of_nodes(session, nodes)).items():
        for profile in own:
            if profile.enabled:
                base = merged[node].get(profile.profile_name)
                merged[node][profile.profile_name] = EffectiveProfile(
                    profile.profile_name,
                    profile.profile_type,
                    merge_patch(base.config if base else {}, profile.config),
                    from_role=base is not None,
                    from_node=True,
                )
    return {
        node: sorted(found.values(), key=lambda profile: profile.name)
        for node, found in merged.items()
    }


def merge_patch(target: Any, patch: Any) -> Any:
    """JSON Merge Patch, RFC 7396: objects merge, null removes, anything else replaces."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged
