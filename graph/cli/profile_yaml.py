"""All role profiles as one YAML document: written, compared and read back."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import orjson
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
)
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.enums import NodeRole, NodeType, ProfileType
from db.core.errors import BadInput
from db.core.identity import Caller
from db.registry import profile_changes, profiles
from db.registry.profiles import ProfileContent
from graph.api.profile_schema import checked_content
from graph.api.scalars import stored_json

Key = tuple[NodeRole, NodeType, str]


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class _Entry(BaseModel):
    """With the names of the API; enums in upper case as there, or in lower."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Annotated[NodeRole, BeforeValidator(_lower)]
    type: Annotated[NodeType, BeforeValidator(_lower)]
    name: str
    profile_type: Annotated[ProfileType, BeforeValidator(_lower), Field(alias="profileType")]
    enabled: bool = True
    config: dict[str, JsonValue]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    profiles: list[_Entry]


@dataclass(frozen=True, slots=True)
class Difference:
    """What an import changes; `diff` is a unified one, of the two documents."""

    written: int
    deleted: int
    diff: str


async def export_profiles(session: AsyncSession) -> str:
    return _document(await _held(session))


async def import_profiles(
    session: AsyncSession, text: str, *, prune: bool, by: Caller
) -> Difference:
    """Makes the profiles of the document, and with `prune` no others. Twice is as good as once.

    Raises BadInput, and changes nothing, for a document that is not as `export_profiles` writes it.
    """
    wanted = _read(text)
    held = await _held(session)
    kept = {} if prune else {key: held[key] for key in held if key not in wanted}
    written = [key for key in wanted if held.get(key) != wanted[key]]
    deleted = [key for key in held if prune and key not in wanted]
    for role, node_type, name in written:
        content = wanted[role, node_type, name]
        await profile_changes.set_of_role(
            session, role, node_type, content, expected_version=None, by=by
        )
    for role, node_type, name in deleted:
        await profile_changes.delete_of_role(
            session, role, node_type, name, expected_version=None, by=by
        )
    before, after = _document(held), _document(kept | wanted)
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), "registry", "file"
    )
    return Difference(len(written), len(deleted), "".join(lines))


async def _held(session: AsyncSession) -> dict[Key, ProfileContent]:
    return {
        (profile.node_role, profile.node_type, profile.profile_name): ProfileContent(
            profile.profile_name, profile.profile_type, profile.config, profile.enabled
        )
        for profile in await profiles.of_roles(session)
    }


def _document(held: Mapping[Key, ProfileContent]) -> str:
    entries = [
        {
            "role": role.name,
            "type": node_type.name,
            "name": name,
            "profileType": content.type.name,
            "enabled": content.enabled,
            "config": orjson.loads(orjson.dumps(content.config, option=orjson.OPT_SORT_KEYS)),
        }
        for (role, node_type, name), content in sorted(held.items())
    ]
    document: str = yaml.safe_dump({"profiles": entries}, sort_keys=False, allow_unicode=True)
    return document


def _read(text: str) -> dict[Key, ProfileContent]:
    try:
        entries = _File.model_validate(yaml.safe_load(text)).profiles
    except yaml.YAMLError as error:
        raise BadInput("file", f"is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(map(str, first["loc"])) or "file"
        raise BadInput(path, first["msg"]) from error
    read: dict[Key, ProfileContent] = {}
    for number, entry in enumerate(entries):
        path = f"profiles.{number}"
        try:
            config = stored_json(entry.config)
        except ValueError as error:
            raise BadInput(f"{path}.config", str(error)) from error
        content = checked_content(
            path, entry.name, entry.profile_type, config, enabled=entry.enabled
        )
        key = entry.role, entry.type, entry.name
        if key in read:
            raise BadInput(path, "is there twice")
        read[key] = content
    return read
