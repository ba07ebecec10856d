"""The writing of profiles: each write is a new version, compared and set, and audited."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

from sqlalchemy import and_, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from db.access import audit
from db.access.audit_documents import MAX_VALUE_BYTES, encode, find_changes
from db.core.enums import NodeRole, NodeType
from db.core.errors import BadInput, ProfileNotFound, VersionConflict
from db.core.identity import Caller
from db.core.tables import NODE_PROFILE, ROLE_PROFILE, NodeProfile, RoleProfile
from db.registry import nodes
from db.registry.profiles import ProfileContent, to_document

ProfileT = TypeVar("ProfileT", NodeProfile, RoleProfile)


@dataclass(frozen=True, slots=True)
class _ProfileKey(Generic[ProfileT]):
    """The key of a profile; `owner` names its owner in messages: a node id, or role/type."""

    table: type[ProfileT]
    columns: Any
    values: dict[str, Any]
    owner: str

    @property
    def name(self) -> str:
        name: str = self.values["profile_name"]
        return name

    def to_condition(self) -> Any:
        return and_(*(self.columns[column] == value for column, value in self.values.items()))


def _make_node_key(node: UUID, node_id: str, name: str) -> _ProfileKey[NodeProfile]:
    values = {"node_id": node, "profile_name": name}
    return _ProfileKey(NodeProfile, NODE_PROFILE, values, node_id)


def _make_role_key(role: NodeRole, node_type: NodeType, name: str) -> _ProfileKey[RoleProfile]:
    values = {"node_role": role, "node_type": node_type, "profile_name": name}
    return _ProfileKey(RoleProfile, ROLE_PROFILE, values, f"{role}/{node_type}")


async def set_node_profile(
    session: AsyncSession,
    node_id: str,
    content: ProfileContent,
    *,
    expected_version: int | None,
    caller: Caller,
) -> NodeProfile:
    """Write a profile of a node, if its version is the expected one, and return it.

    The expected version 0 means that there is no such profile yet; None accepts any version.

    Raises: NodeNotFound: no such node is registered. VersionConflict: the profile is at another
    version.
    """
    node = await nodes.lock_node(session, node_id)
    key = _make_node_key(node.id, node_id, content.name)
    return await _set_profile(session, key, content, expected_version, caller)


async def delete_node_profile(
    session: AsyncSession, node_id: str, name: str, *, expected_version: int | None, caller: Caller
) -> None:
    """Delete a profile of a node, if its version is the expected one; None accepts any version.

    Raises: NodeNotFound: no such node is registered. ProfileNotFound: the node has no such
    profile of its own. VersionConflict: the profile is at another version.
    """
    node = await nodes.lock_node(session, node_id)
    await _delete_profile(session, _make_node_key(node.id, node_id, name), expected_version, caller)


async def set_role_profile(
    session: AsyncSession,
    role: NodeRole,
    node_type: NodeType,
    content: ProfileContent,
    *,
    expected_version: int | None,
    caller: Caller,
) -> RoleProfile:
    """Write a profile of a role and type, as `set_node_profile` does of a node.

    Raises: VersionConflict: the profile is at another version.
    """
    key = _make_role_key(role, node_type, content.name)
    return await _set_profile(session, key, content, expected_version, caller)


async def delete_role_profile(
    session: AsyncSession,
    role: NodeRole,
    node_type: NodeType,
    name: str,
    *,
    expected_version: int | None,
    caller: Caller,
) -> None:
    """Delete a profile of a role and type, if its version is the expected one.

    Raises: ProfileNotFound: the role and type have no such profile. VersionConflict: the
    profile is at another version.
    """
    await _delete_profile(session, _make_role_key(role, node_type, name), expected_version, caller)


async def write_registered_profiles(
    session: AsyncSession,
    node: UUID,
    node_id: str,
    contents: Sequence[ProfileContent],
    *,
    caller: Caller,
) -> None:
    """Write the profiles of a registration; one that is unchanged keeps its version.

    The node must be locked.
    """
    profiles = await find_changed_profiles(session, node, node_id, contents)
    await write_profiles(session, profiles, caller=caller)


MAX_NODE_PROFILES = 256
"""Beyond it a registration adds none. Unlike heartbeats, profiles stay for ever."""


@dataclass(frozen=True, slots=True)
class ChangedProfile:
    """A profile of a node that a registration creates or changes, locked for this transaction."""

    key: _ProfileKey[NodeProfile]
    current: NodeProfile | None
    content: ProfileContent


async def find_changed_profiles(
    session: AsyncSession, node: UUID, node_id: str, contents: Sequence[ProfileContent]
) -> list[ChangedProfile]:
    """Lock the profiles of a registration and return those that change. The node must be locked.

    Raises: BadInput: the node would have more than MAX_NODE_PROFILES profiles.
    """
    changed = []
    for content in contents:
        key = _make_node_key(node, node_id, content.name)
        current = await _lock_profile(session, key)
        if current is None or encode(to_document(current)) != encode(content.to_document()):
            changed.append(ChangedProfile(key, current, content))
    if new_count := sum(profile.current is None for profile in changed):
        count = select(func.count()).where(NODE_PROFILE.node_id == node)
        if (await session.scalar(count) or 0) + new_count > MAX_NODE_PROFILES:
            raise BadInput("input.profiles", f"a node may have at most {MAX_NODE_PROFILES}")
    return changed


async def write_profiles(
    session: AsyncSession, profiles: Sequence[ChangedProfile], *, caller: Caller
) -> None:
    """Write the profiles that `find_changed_profiles` returned in this transaction."""
    for profile in profiles:
        await _write_profile(session, profile.key, profile.current, profile.content, caller)


async def _set_profile(
    session: AsyncSession,
    key: _ProfileKey[ProfileT],
    content: ProfileContent,
    expected_version: int | None,
    caller: Caller,
) -> ProfileT:
    current = await _lock_profile(session, key)
    _require_version(key, current, expected_version)
    return await _write_profile(session, key, current, content, caller)


async def _delete_profile(
    session: AsyncSession,
    key: _ProfileKey[ProfileT],
    expected_version: int | None,
    caller: Caller,
) -> None:
    current = await _lock_profile(session, key)
    if current is None:
        raise ProfileNotFound(key.owner, key.name)
    _require_version(key, current, expected_version)
    before = to_document(current)
    await session.execute(delete(key.table).where(key.to_condition()))
    await _record_action(session, key, "profile.delete", before=before, after=None, caller=caller)


async def _lock_profile(session: AsyncSession, key: _ProfileKey[ProfileT]) -> ProfileT | None:
    """Lock the key for this transaction and return its profile, None if there is none."""
    subject = f"profile {key.owner} {key.name}"
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(subject, 0))))
    return (await session.scalars(select(key.table).where(key.to_condition()))).one_or_none()


def _require_version(
    key: _ProfileKey[ProfileT], current: ProfileT | None, expected_version: int | None
) -> None:
    version = current.version if current else 0
    if expected_version not in {None, version}:
        raise VersionConflict(key.owner, key.name, version)


async def _write_profile(
    session: AsyncSession,
    key: _ProfileKey[ProfileT],
    current: ProfileT | None,
    content: ProfileContent,
    caller: Caller,
) -> ProfileT:
    before = to_document(current) if current else None
    values = {"profile_type": content.type, "config": content.config, "enabled": content.enabled}
    statement = (
        update(key.table)
        .where(key.to_condition())
        .values(**values, version=key.columns.version + 1, updated_at=func.registry_now())
        if current
        else insert(key.table).values(**key.values, **values)
    )
    written = (await session.scalars(statement.returning(key.table))).one()
    await session.refresh(written)
    after = content.to_document()
    await _record_action(session, key, "profile.set", before=before, after=after, caller=caller)
    return written


async def _record_action(
    session: AsyncSession,
    key: _ProfileKey[ProfileT],
    action: str,
    *,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    caller: Caller,
) -> None:
    if before is not None and after is not None and len(encode([before, after])) > MAX_VALUE_BYTES:
        before, after = find_changes(before, after)
    subject = f"{key.owner}/{key.name}"
    await audit.record_action(
        session, caller=caller, action=action, subject=subject, before=before, after=after
    )
