"""The profile commands on the embedded PostgreSQL of a running registry."""

from pathlib import Path

from db.embedded.server import run_embedded_postgres
from tests.support.clusters import FAST
from tests.support.commands import run_process


async def test_profiles_are_exported_while_a_registry_runs_on_the_embedded_postgresql(
    data_dir: Path,
) -> None:
    folder = {"NODE_REGISTRY_DATA_DIR": str(data_dir)}
    async with run_embedded_postgres(data_dir, options=FAST):
        _, output, _ = await run_process("profile", "export", **folder)
    assert output == "profiles: []\n"
