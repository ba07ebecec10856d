"""Export and import of all role profiles as one YAML file, and the commands for them."""

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


async def import_text(database: Database, text: str, *, prune: bool = False) -> Difference:
    async with database.write() as session:
        return await import_profiles(session, text, prune=prune, caller=OPERATOR)


async def export_text(database: Database) -> str:
    async with database.read() as session:
        return await export_profiles(session)


async def test_an_export_contains_what_was_imported(database: Database) -> None:
    assert await export_text(database) == "profiles: []\n"
    difference = await import_text(database, FILE)
    assert (difference.written, difference.deleted) == (2, 0)
    document = yaml.safe_load(await export_text(database))
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


async def test_a_repeated_import_changes_nothing(database: Database) -> None:
    await import_text(database, FILE)
    text = await export_text(database)
    for repeated in (FILE, text):
        assert await import_text(database, repeated) == Difference(0, 0, "")
    async with database.read() as session:
        stored = await profiles.list_role_profiles(session)
    assert {profile.version for profile in stored} == {1}


async def test_other_profiles_stay_unless_prune_is_set(database: Database) -> None:
    async with database.write() as session:
        await profile_changes.set_role_profile(
            session,
            NodeRole.DEVELOPMENT,
            NodeType.ROUTER,
            ProfileContent("mine", ProfileType.LLM, {}),
            expected_version=None,
            caller=OPERATOR,
        )
    await import_text(database, FILE)
    assert "mine" in await export_text(database)
    difference = await import_text(database, FILE, prune=True)
    assert (difference.written, difference.deleted) == (0, 1)
    assert "-  name: mine\n" in difference.diff
    assert "mine" not in await export_text(database)


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
async def test_an_invalid_file_is_rejected_with_its_field_and_changes_nothing(
    database: Database, text: str, field: str
) -> None:
    with pytest.raises(BadInput) as rejection:
        await import_text(database, text)
    assert str(rejection.value.details["field"]).startswith(field)
    assert await export_text(database) == "profiles: []\n"


async def run_profile_command(url: URL, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    return await run("profile", *arguments, stdin=stdin, **make_environment(url))


async def test_the_commands_export_and_import_profiles_and_dry_run_shows_the_changes(
    database_url: URL, tmp_path: Path
) -> None:
    file = tmp_path / "profiles.yaml"
    file.write_text(FILE, encoding="utf-8")
    status, output, _ = await run_profile_command(database_url, "import", "--dry-run", str(file))
    assert status == 0
    assert "+  name: llm\n" in output
    assert output.endswith("2 would be written, 0 would be deleted.\n")
    assert (await run_profile_command(database_url, "export"))[1] == "profiles: []\n"
    _, output, _ = await run_profile_command(database_url, "import", "-", stdin=FILE)
    assert output.endswith("2 were written, 0 were deleted.\n")
    _, text, _ = await run_profile_command(database_url, "export")
    assert len(yaml.safe_load(text)["profiles"]) == 2
    _, output, _ = await run_profile_command(database_url, "import", "-", stdin=text)
    assert output == "0 were written, 0 were deleted.\n"
    status, _, errors = await run_profile_command(database_url, "import", "-", stdin="nonsense")
    assert status == 1
    assert len(errors.splitlines()) == 1


async def test_the_schema_of_a_config_is_printed(database_url: URL) -> None:
    _, text, _ = await run_profile_command(database_url, "schema", "LLM")
    schema: dict[str, Any] = json.loads(text)
    assert schema["additionalProperties"] is True
    assert "temperature" in schema["properties"]
