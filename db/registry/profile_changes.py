"""Writes profiles: each write is a new version, made by who knew the one before, and audited."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

import orjson
from sqlalchemy import and_, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from db.access import audit
from db.core.enums import NodeRole, NodeType
from db.core.errors import ProfileNotFound, VersionConflict
from db.core.identity import Caller
from db.core.tables import NODE_PROFILE, ROLE_PROFILE, NodeProfile, RoleProfile
from db.registry import nodes
from db.registry.profiles import ProfileContent, to_document

ProfileT = TypeVar("ProfileT", NodeProfile, RoleProfile)


@dataclass(frozen=True, slots=True)
class _ProfileKey(Generic[ProfileT]):
    """Where a profile stands; `owner` names it for people: a node's id, or a role and type."""

    table: type[ProfileT]
    columns: Any
    keys: dict[str, Any]
    owner: str

    @property
    def name(self) -> str:
        name: str = self.keys["profile_name"]
        return name

    def to_condition(self) -> Any:
        return and_(*(self.columns[column] == value for column, value in self.keys.items()))


def _make_node_key(node: UUID, node_id: str, name: str) -> _ProfileKey[NodeProfile]:
    keys = {"node_id": node, "profile_name": name}
    return _ProfileKey(NodeProfile, NODE_PROFILE, keys, node_id)


def _make_role_key(role: NodeRole, node_type: NodeType, name: str) -> _ProfileKey[RoleProfile]:
    keys = {"node_role": role, "node_type": node_type, "profile_name": name}
    return _ProfileKey(RoleProfile, ROLE_PROFILE, keys, f"{role}/{node_type}")


async def set_node_profile(
    session: AsyncSession,
    node_id: str,
    content: ProfileContent,
    *,
    expected_version: int | None,
    by: Caller,
) -> NodeProfile:
    """Raises NodeNotFound, and VersionConflict unless the version is the one that was expected.

    0 expects that there is no such profile yet; None expects nothing.
    """
    node = await nodes.lock_node(session, node_id)
    place = _make_node_key(node.id, node_id, content.name)
    return await _set_profile(session, place, content, expected_version, by)


async def delete_node_profile(
    session: AsyncSession, node_id: str, name: str, *, expected_version: int | None, by: Caller
) -> None:
    """Raises NodeNotFound, ProfileNotFound and VersionConflict."""
    node = await nodes.lock_node(session, node_id)
    await _delete_profile(session, _make_node_key(node.id, node_id, name), expected_version, by)


async def set_role_profile(
    session: AsyncSession,
    role: NodeRole,
    node_type: NodeType,
    content: ProfileContent,
    *,
    expected_version: int | None,
    by: Caller,
) -> RoleProfile:
    """Raises VersionConflict, as for nodes."""
    place = _make_role_key(role, node_type, content.name)
    return await _set_profile(session, place, content, expected_version, by)


async def delete_role_profile(
    session: AsyncSession,
    role: NodeRole,
    node_type: NodeType,
    name: str,
    *,
    expected_version: int | None,
    by: Caller,
) -> None:
    """Raises ProfileNotFound and VersionConflict."""
    await _delete_profile(session, _make_role_key(role, node_type, name), expected_version, by)


async def write_registered_profiles(
    session: AsyncSession,
    node: UUID,
    node_id: str,
    contents: Sequence[ProfileContent],
    *,
    by: Caller,
) -> None:
    """What a registration brings, of a node that is locked; what says nothing new is kept."""
    for content in contents:
        place = _make_node_key(node, node_id, content.name)
        held = await _lock_profile(session, place)
        if held is None or _encode(to_document(held)) != _encode(content.to_document()):
            await _write_profile(session, place, held, content, by)


def _encode(document: dict[str, Any]) -> bytes:
    # To Python 1 and true are equal.
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


async def _set_profile(
    session: AsyncSession,
    place: _ProfileKey[ProfileT],
    content: ProfileContent,
    expected_version: int | None,
    by: Caller,
) -> ProfileT:
    held = await _lock_profile(session, place)
    _require_version(place, held, expected_version)
    return await _write_profile(session, place, held, content, by)


async def _delete_profile(
    session: AsyncSession, place: _ProfileKey[ProfileT], expected_version: int | None, by: Caller
) -> None:
    held = await _lock_profile(session, place)
    if held is None:
        raise ProfileNotFound(place.owner, place.name)
    _require_version(place, held, expected_version)
    before = to_document(held)
    await session.execute(delete(place.table).where(place.to_condition()))
    await _record_action(session, place, "profile.delete", before=before, after=None, by=by)


async def _lock_profile(session: AsyncSession, place: _ProfileKey[ProfileT]) -> ProfileT | None:
    """The profile, whose place is locked for this transaction, whether it is there or not."""
    subject = f"profile {place.owner} {place.name}"
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(subject, 0))))
    return (await session.scalars(select(place.table).where(place.to_condition()))).one_or_none()


def _require_version(
    place: _ProfileKey[ProfileT], held: ProfileT | None, expected_version: int | None
) -> None:
    current = held.version if held else 0
    if expected_version not in {None, current}:
        raise VersionConflict(place.owner, place.name, current)


async def _write_profile(
    session: AsyncSession,
    place: _ProfileKey[ProfileT],
    held: ProfileT | None,
    content: ProfileContent,
    by: Caller,
) -> ProfileT:
    before = to_document(held) if held else None
    said = {"profile_type": content.type, "config": content.config, "enabled": content.enabled}
    statement = (
        update(place.table)
        .where(place.to_condition())
        .values(**said, version=place.columns.version + 1, updated_at=func.registry_now())
        if held
        else insert(place.table).values(**place.keys, **said)
    )
    written = (await session.scalars(statement.returning(place.table))).one()
    await session.refresh(written)
    after = content.to_document()
    await _record_action(session, place, "profile.set", before=before, after=after, by=by)
    return written


async def _record_action(
    session: AsyncSession,
    place: _ProfileKey[ProfileT],
    action: str,
    *,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    by: Caller,
) -> None:
    subject = f"{place.owner}/{place.name}"
    await audit.record_action(
        session, caller=by, action=action, subject=subject, before=before, after=after
    )
