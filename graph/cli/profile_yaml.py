"""Export and import of all role profiles as one YAML document."""

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
from graph.api.profile_schema import parse_content
from graph.api.scalars import parse_json

ProfileKey = tuple[NodeRole, NodeType, str]


def _lower_text(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class _ProfileEntry(BaseModel):
    """A profile with the field names of the API; its enum values in upper or lower case."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Annotated[NodeRole, BeforeValidator(_lower_text)]
    type: Annotated[NodeType, BeforeValidator(_lower_text)]
    name: str
    profile_type: Annotated[ProfileType, BeforeValidator(_lower_text), Field(alias="profileType")]
    enabled: bool = True
    config: dict[str, JsonValue]


class _ProfileDocument(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    profiles: list[_ProfileEntry]


@dataclass(frozen=True, slots=True)
class Difference:
    """The changes of an import: counts of profiles, and a unified diff of the documents."""

    written: int
    deleted: int
    diff: str


async def export_profiles(session: AsyncSession) -> str:
    """Return all role profiles as a YAML document."""
    return _format_document(await _load_stored(session))


async def import_profiles(
    session: AsyncSession, text: str, *, prune: bool, caller: Caller
) -> Difference:
    """Store the profiles of the document, and with `prune` delete all others; idempotent.

    Raises: BadInput: the document has not the form that `export_profiles` writes; nothing changed.
    """
    imported = _parse_document(text)
    stored = await _load_stored(session)
    kept = {} if prune else {key: stored[key] for key in stored if key not in imported}
    written = [key for key in imported if stored.get(key) != imported[key]]
    deleted = [key for key in stored if prune and key not in imported]
    for role, node_type, name in written:
        content = imported[role, node_type, name]
        await profile_changes.set_role_profile(
            session, role, node_type, content, expected_version=None, caller=caller
        )
    for role, node_type, name in deleted:
        await profile_changes.delete_role_profile(
            session, role, node_type, name, expected_version=None, caller=caller
        )
    before, after = _format_document(stored), _format_document(kept | imported)
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), "registry", "file"
    )
    return Difference(len(written), len(deleted), "".join(lines))


async def _load_stored(session: AsyncSession) -> dict[ProfileKey, ProfileContent]:
    return {
        (profile.node_role, profile.node_type, profile.profile_name): ProfileContent(
            profile.profile_name, profile.profile_type, profile.config, profile.enabled
        )
        for profile in await profiles.list_role_profiles(session)
    }


def _format_document(stored: Mapping[ProfileKey, ProfileContent]) -> str:
    entries = [
        {
            "role": role.name,
            "type": node_type.name,
            "name": name,
            "profileType": content.type.name,
            "enabled": content.enabled,
            "config": orjson.loads(orjson.dumps(content.config, option=orjson.OPT_SORT_KEYS)),
        }
        for (role, node_type, name), content in sorted(stored.items())
    ]
    document: str = yaml.dump(
        {"profiles": entries}, Dumper=TerminalDumper, sort_keys=False, allow_unicode=True
    )
    return document


class TerminalDumper(yaml.SafeDumper):
    """Puts text that is not printable in double quotes, in which YAML knows `echo`'s escapes."""

    def represent_text(self, text: str) -> yaml.Node:
        is_printable = text.replace("\n", "").isprintable()
        return self.represent_scalar("tag:yaml.org,2002:str", text, None if is_printable else '"')


TerminalDumper.add_representer(str, TerminalDumper.represent_text)


def _parse_document(text: str) -> dict[ProfileKey, ProfileContent]:
    try:
        entries = _ProfileDocument.model_validate(yaml.safe_load(text)).profiles
    except yaml.YAMLError as error:
        raise BadInput("file", f"is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(map(str, first["loc"])) or "file"
        raise BadInput(path, first["msg"]) from error
    parsed: dict[ProfileKey, ProfileContent] = {}
    for number, entry in enumerate(entries):
        path = f"profiles.{number}"
        try:
            config = parse_json(entry.config)
        except ValueError as error:
            raise BadInput(f"{path}.config", str(error)) from error
        content = parse_content(path, entry.name, entry.profile_type, config, enabled=entry.enabled)
        key = entry.role, entry.type, entry.name
        if key in parsed:
            raise BadInput(path, "repeats an earlier profile")
        parsed[key] = content
    return parsed
