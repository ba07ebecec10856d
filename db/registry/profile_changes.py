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
from db.registry.profiles import ProfileContent, as_document

ProfileT = TypeVar("ProfileT", NodeProfile, RoleProfile)


@dataclass(frozen=True, slots=True)
class _Place(Generic[ProfileT]):
    """Where a profile stands; `owner` names it for people: a node's id, or a role and type."""

    table: type[ProfileT]
    columns: Any
    keys: dict[str, Any]
    owner: str

    @property
    def name(self) -> str:
        name: str = self.keys["profile_name"]
        return name

    def condition(self) -> Any:
        return and_(*(self.columns[column] == value for column, value in self.keys.items()))


def _of_node(node: UUID, node_id: str, name: str) -> _Place[NodeProfile]:
    keys = {"node_id": node, "profile_name": name}
    return _Place(NodeProfile, NODE_PROFILE, keys, node_id)


def _of_role(role: NodeRole, node_type: NodeType, name: str) -> _Place[RoleProfile]:
    keys = {"node_role": role, "node_type": node_type, "profile_name": name}
    return _Place(RoleProfile, ROLE_PROFILE, keys, f"{role}/{node_type}")


async def set_of_node(
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
    node = await nodes.locked(session, node_id)
    place = _of_node(node.id, node_id, content.name)
    return await _set(session, place, content, expected_version, by)


async def delete_of_node(
    session: AsyncSession, node_id: str, name: str, *, expected_version: int | None, by: Caller
) -> None:
    """Raises NodeNotFound, ProfileNotFound and VersionConflict."""
    node = await nodes.locked(session, node_id)
    await _delete(session, _of_node(node.id, node_id, name), expected_version, by)


async def set_of_role(
    session: AsyncSession,
    role: NodeRole,
    node_type: NodeType,
    content: ProfileContent,
    *,
    expected_version: int | None,
    by: Caller,
) -> RoleProfile:
    """Raises VersionConflict, as for nodes."""
    place = _of_role(role, node_type, content.name)
    return await _set(session, place, content, expected_version, by)


async def delete_of_role(
    session: AsyncSession,
    role: NodeRole,
    node_type: NodeType,
    name: str,
    *,
    expected_version: int | None,
    by: Caller,
) -> None:
    """Raises ProfileNotFound and VersionConflict."""
    await _delete(session, _of_role(role, node_type, name), expected_version, by)


async def put_of_node(
    session: AsyncSession,
    node: UUID,
    node_id: str,
    contents: Sequence[ProfileContent],
    *,
    by: Caller,
) -> None:
    """What a registration brings, of a node that is locked; what says nothing new is kept."""
    for content in contents:
        place = _of_node(node, node_id, content.name)
        held = await _held(session, place)
        if held is None or _text(as_document(held)) != _text(content.as_document()):
            await _write(session, place, held, content, by)


def _text(document: dict[str, Any]) -> bytes:
    # To Python 1 and true are equal.
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


async def _set(
    session: AsyncSession,
    place: _Place[ProfileT],
    content: ProfileContent,
    expected_version: int | None,
    by: Caller,
) -> ProfileT:
    held = await _held(session, place)
    _require_version(place, held, expected_version)
    return await _write(session, place, held, content, by)


async def _delete(
    session: AsyncSession, place: _Place[ProfileT], expected_version: int | None, by: Caller
) -> None:
    held = await _held(session, place)
    if held is None:
        raise ProfileNotFound(place.owner, place.name)
    _require_version(place, held, expected_version)
    before = as_document(held)
    await session.execute(delete(place.table).where(place.condition()))
    await _record(session, place, "profile.delete", before=before, after=None, by=by)


async def _held(session: AsyncSession, place: _Place[ProfileT]) -> ProfileT | None:
    """The profile, whose place is locked for this transaction, whether it is there or not."""
    subject = f"profile {place.owner} {place.name}"
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(subject, 0))))
    return (await session.scalars(select(place.table).where(place.condition()))).one_or_none()


def _require_version(
    place: _Place[ProfileT], held: ProfileT | None, expected_version: int | None
) -> None:
    current = held.version if held else 0
    if expected_version not in {None, current}:
        raise VersionConflict(place.owner, place.name, current)


async def _write(
    session: AsyncSession,
    place: _Place[ProfileT],
    held: ProfileT | None,
    content: ProfileContent,
    by: Caller,
) -> ProfileT:
    before = as_document(held) if held else None
    said = {"profile_type": content.type, "config": content.config, "enabled": content.enabled}
    statement = (
        update(place.table)
        .where(place.condition())
        .values(**said, version=place.columns.version + 1, updated_at=func.registry_now())
        if held
        else insert(place.table).values(**place.keys, **said)
    )
    written = (await session.scalars(statement.returning(place.table))).one()
    await session.refresh(written)
    after = content.as_document()
    await _record(session, place, "profile.set", before=before, after=after, by=by)
    return written


async def _record(
    session: AsyncSession,
    place: _Place[ProfileT],
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
