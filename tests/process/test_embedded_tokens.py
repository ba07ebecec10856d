"""The token commands on the embedded PostgreSQL of a running registry."""

from pathlib import Path

from db.core.token_format import parse_token
from tests.support.commands import run, run_process
from tests.support.processes import run_registry


async def test_tokens_are_created_while_a_registry_runs_on_the_embedded_postgresql(
    data_dir: Path,
) -> None:
    folder = {"NODE_REGISTRY_DATA_DIR": str(data_dir)}
    async with run_registry(data_dir):
        status, output, _ = await run_process("token", "create", "--role", "viewer", **folder)
        assert status == 0
        token = parse_token(output.strip())
        assert token is not None
        status, table, _ = await run("token", "list", **folder)
        assert status == 0
        assert token.public_id in table
