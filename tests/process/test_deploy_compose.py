"""The first run of deploy/compose.yaml, step by step and without containers."""

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from sqlalchemy import URL

from tests.support.commands import COMMAND, run
from tests.support.live_server import run_server
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def has_compose() -> bool:
    if shutil.which("docker") is None:
        return False
    return (
        subprocess.run(
            ["docker", "compose", "version"], capture_output=True, check=False
        ).returncode
        == 0
    )


@pytest.mark.skipif(not has_compose(), reason="docker compose is not on this machine")
def test_docker_compose_accepts_the_file() -> None:
    process = subprocess.run(
        ["docker", "compose", "--file", DEPLOY / "compose.yaml", "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


async def test_first_run_creates_the_database_then_the_token_then_serves(
    postgres: URL, service_name: str, tmp_path: Path
) -> None:
    access, keys = tmp_path / "access", tmp_path / "keys"
    access.mkdir()
    keys.mkdir()
    (tmp_path / "administrator.env").write_text(
        f"NODE_REGISTRY_ADMINISTRATOR_URL={postgres.render_as_string(hide_password=False)}\n"
    )

    def to_local_paths(text: str) -> str:
        paths = {
            "/run/secrets": tmp_path,
            "/var/lib/node-registry": access,
            "/keys": keys,
            "/tmp/key": tmp_path / "key",  # noqa: S108  # of the container
        }
        for path, local_path in paths.items():
            text = text.replace(path, str(local_path))
        return text

    def make_environment(service: str) -> dict[str, str]:
        return {k: to_local_paths(v) for k, v in SERVICES[service]["environment"].items()}

    command = [to_local_paths(word) for word in SERVICES["database"]["command"]]
    status, _, errors = await run(
        *command, "--database", service_name, **make_environment("database")
    )
    assert status == 0, errors
    tokens = []
    for _ in range(2):
        await asyncio.to_thread(
            subprocess.run,
            [to_local_paths(word) for word in SERVICES["metrics-key"]["entrypoint"]],
            env={
                **os.environ,
                **make_environment("metrics-key"),
                "PATH": f"{COMMAND.parent}:/bin:/usr/bin",
            },
            check=True,
        )
        tokens.append((keys / "metrics_key").read_text())
    assert tokens[0] == tokens[1]
    settings = dict(
        line.split("=") for line in (access / "service.env").read_text().splitlines()[1:]
    )
    service = postgres.set(
        database=service_name, username=service_name, password=settings["NODE_REGISTRY_DB_PASSWORD"]
    )
    async with run_server(service, tmp_path, auth="required") as registry:
        bearer = {"Authorization": f"Bearer {tokens[0].strip()}"}
        async with httpx.AsyncClient(base_url=registry.url) as http:
            assert (await http.get("/metrics")).status_code == 401
            assert (await http.get("/metrics", headers=bearer)).status_code == 200
