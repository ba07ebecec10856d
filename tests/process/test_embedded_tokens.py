"""Tokens are made on the database that a registry runs itself."""

from pathlib import Path

from db.core.token_format import parse_token
from tests.support.commands import run, run_process
from tests.support.processes import run_registry


async def test_keys_are_made_beside_a_registry_that_runs_on_its_own_database(
    data_dir: Path,
) -> None:
    folder = {"NODE_REGISTRY_DATA_DIR": str(data_dir)}
    async with run_registry(data_dir):
        status, made, _ = await run_process("token", "create", "--role", "viewer", **folder)
        assert status == 0
        key = parse_token(made.strip())
        assert key is not None
        status, listed, _ = await run("token", "list", **folder)
        assert status == 0
        assert key.public_id in listed
