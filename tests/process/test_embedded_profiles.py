"""Profiles are moved on the database that a registry runs itself."""

from pathlib import Path

from db.embedded.server import run_embedded_postgres
from tests.support.clusters import FAST
from tests.support.commands import run_process


async def test_profiles_are_moved_beside_a_registry_that_runs_on_its_own_postgresql(
    data_dir: Path,
) -> None:
    folder = {"NODE_REGISTRY_DATA_DIR": str(data_dir)}
    async with run_embedded_postgres(data_dir, options=FAST):
        _, output, _ = await run_process("profile", "export", **folder)
    assert output == "profiles: []\n"
