"""Queries over HTTP, on a registry that runs."""

from conftest import LiveServer


async def test_registry_tells_its_version_mode_and_counts(server: LiveServer) -> None:
    data = await server.execute(
        "{ registry { version environment mode revision nodeCounts { total offline } } }"
    )
    assert data["registry"] == {
        "version": "0.1.0",
        "environment": "development",
        "mode": "NORMAL",
        "revision": "2",
        "nodeCounts": {"total": 2, "offline": 2},
    }
