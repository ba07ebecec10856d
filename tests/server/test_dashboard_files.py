"""The dashboard's files: public, and loaded from this host only."""

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy import URL

from graph.transport.dashboard import STATIC
from tests.support.live_server import LiveServer, run_server

FILES = STATIC / "dashboard"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def auth_server(
    shared_database_url: URL, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[LiveServer]:
    folder = tmp_path_factory.mktemp("guarded")
    async with run_server(shared_database_url, folder, auth="required") as live:
        yield live


@pytest.mark.asyncio(loop_scope="module")
async def test_dashboard_is_public_and_its_policy_allows_own_scripts_only(
    auth_server: LiveServer,
) -> None:
    page = await auth_server.http.get("/dashboard?node=a")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert (await auth_server.http.get("/dashboard/")).status_code == 307


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("page", ["dashboard/index.html", "graphiql/index.html", "index.html"])
async def test_page_is_not_served_as_a_static_file_without_its_policy(
    auth_server: LiveServer, page: str
) -> None:
    assert (STATIC / page).exists()
    assert (await auth_server.http.get(f"/static/{page}")).status_code == 404


@pytest.mark.asyncio(loop_scope="module")
async def test_each_referenced_file_exists_and_is_revalidated(auth_server: LiveServer) -> None:
    page = await auth_server.http.get("/dashboard")
    references = set(re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text))
    assert references == {f"/static/dashboard/{file.name}" for file in FILES.iterdir()} - {
        "/static/dashboard/index.html"
    }
    for address in references:
        asset = await auth_server.http.get(address)
        assert asset.status_code == 200
        assert asset.headers["cache-control"] == "no-cache"
        again = await auth_server.http.get(
            address, headers={"if-none-match": asset.headers["etag"]}
        )
        assert again.status_code == 304
