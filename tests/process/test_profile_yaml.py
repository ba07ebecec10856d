"""All role profiles as one file: moved from registry to registry, by the commands of operators."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import URL

from db.core.database import Database
from db.core.enums import NodeRole, NodeType, ProfileType
from db.core.errors import BadInput
from db.registry import profile_changes, profiles
from db.registry.profiles import ProfileContent
from graph.cli.profile_yaml import Difference, export_profiles, import_profiles
from tests.support.commands import make_environment, run
from tests.support.fleet import OPERATOR

FILE = """
profiles:
- role: PRODUCTION
  type: WORKER
  name: llm
  profileType: LLM
  config:
    model: llama
    temperature: 0.5
- role: backup
  type: gateway
  name: proxy
  profileType: service
  enabled: false
  config:
    port: 8080
    note: "grün"
"""


async def brought(database: Database, text: str, *, prune: bool = False) -> Difference:
    async with database.write() as session:
        return await import_profiles(session, text, prune=prune, caller=OPERATOR)


async def exported(database: Database) -> str:
    async with database.read() as session:
        return await export_profiles(session)


async def test_what_is_imported_is_exported_again(database: Database) -> None:
    assert await exported(database) == "profiles: []\n"
    done = await brought(database, FILE)
    assert (done.written, done.deleted) == (2, 0)
    document = yaml.safe_load(await exported(database))
    assert document["profiles"] == [
        {
            "role": "BACKUP",
            "type": "GATEWAY",
            "name": "proxy",
            "profileType": "SERVICE",
            "enabled": False,
            "config": {"note": "grün", "port": 8080},
        },
        {
            "role": "PRODUCTION",
            "type": "WORKER",
            "name": "llm",
            "profileType": "LLM",
            "enabled": True,
            "config": {"model": "llama", "temperature": 0.5},
        },
    ]


async def test_to_import_twice_is_to_import_once(database: Database) -> None:
    await brought(database, FILE)
    text = await exported(database)
    for again in (FILE, text):
        assert await brought(database, again) == Difference(0, 0, "")
    async with database.read() as session:
        held = await profiles.list_role_profiles(session)
    assert {profile.version for profile in held} == {1}


async def test_others_stay_unless_they_are_pruned(database: Database) -> None:
    async with database.write() as session:
        await profile_changes.set_role_profile(
            session,
            NodeRole.DEVELOPMENT,
            NodeType.ROUTER,
            ProfileContent("mine", ProfileType.LLM, {}),
            expected_version=None,
            caller=OPERATOR,
        )
    await brought(database, FILE)
    assert "mine" in await exported(database)
    pruned = await brought(database, FILE, prune=True)
    assert (pruned.written, pruned.deleted) == (0, 1)
    assert "-  name: mine\n" in pruned.diff
    assert "mine" not in await exported(database)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("profiles: [", "file"),
        ("[]", "file"),
        ("{}", "profiles"),
        ("profiles: 1", "profiles"),
        ("other: 1\nprofiles: []", "other"),
        (FILE.replace("port: 8080", "port: 0"), "profiles.1.config.port"),
        (FILE.replace("PRODUCTION", "ROYAL"), "profiles.0.role"),
        (FILE.replace("name: llm", "name: ''"), "profiles.0.name"),
        (FILE.replace("model: llama", "model: 2026-11-24"), "profiles.0.config.model"),
        (FILE.replace("port: 8080", "port: .nan"), "profiles.1.config"),
        (FILE + FILE.removeprefix("\nprofiles:\n"), "profiles.2"),
    ],
)
async def test_a_file_that_is_not_right_is_refused_by_the_place_and_changes_nothing(
    database: Database, text: str, field: str
) -> None:
    with pytest.raises(BadInput) as refused:
        await brought(database, text)
    assert str(refused.value.details["field"]).startswith(field)
    assert await exported(database) == "profiles: []\n"


async def profile(url: URL, *arguments: str, given: str = "") -> tuple[int, str, str]:
    return await run("profile", *arguments, given=given, **make_environment(url))


async def test_the_commands_move_profiles_and_show_before_what_they_do(
    database_url: URL, tmp_path: Path
) -> None:
    file = tmp_path / "profiles.yaml"
    file.write_text(FILE, encoding="utf-8")
    status, shown, _ = await profile(database_url, "import", "--dry-run", str(file))
    assert status == 0
    assert "+  name: llm\n" in shown
    assert shown.endswith("2 would be written, 0 would be deleted.\n")
    assert (await profile(database_url, "export"))[1] == "profiles: []\n"
    _, shown, _ = await profile(database_url, "import", "-", given=FILE)
    assert shown.endswith("2 were written, 0 were deleted.\n")
    _, text, _ = await profile(database_url, "export")
    assert len(yaml.safe_load(text)["profiles"]) == 2
    _, shown, _ = await profile(database_url, "import", "-", given=text)
    assert shown == "0 were written, 0 were deleted.\n"
    status, _, said = await profile(database_url, "import", "-", given="nonsense")
    assert status == 1
    assert len(said.splitlines()) == 1


async def test_the_schema_of_a_config_is_printed(database_url: URL) -> None:
    _, text, _ = await profile(database_url, "schema", "LLM")
    schema: dict[str, Any] = json.loads(text)
    assert schema["additionalProperties"] is True
    assert "temperature" in schema["properties"]
