"""The dashboard's files: public, from this host alone, and all of a piece."""

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy import URL

from graph.transport.dashboard import STATIC
from tests.support.live_server import LiveServer, run_server

FILES = STATIC / "dashboard"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(
    shared_database_url: URL, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[LiveServer]:
    folder = tmp_path_factory.mktemp("guarded")
    async with run_server(shared_database_url, folder, auth="required") as live:
        yield live


@pytest.mark.asyncio(loop_scope="module")
async def test_anybody_gets_the_page_and_nothing_foreign_may_run_in_it(guarded: LiveServer) -> None:
    page = await guarded.http.get("/dashboard?node=a")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert (await guarded.http.get("/dashboard/")).status_code == 307


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("page", ["dashboard/index.html", "graphiql/index.html", "index.html"])
async def test_no_page_comes_by_another_way_without_its_policy(
    guarded: LiveServer, page: str
) -> None:
    assert (STATIC / page).exists()
    assert (await guarded.http.get(f"/static/{page}")).status_code == 404


@pytest.mark.asyncio(loop_scope="module")
async def test_each_file_is_there_and_looked_for_anew_each_time(guarded: LiveServer) -> None:
    page = await guarded.http.get("/dashboard")
    references = set(re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text))
    assert references == {f"/static/dashboard/{file.name}" for file in FILES.iterdir()} - {
        "/static/dashboard/index.html"
    }
    for address in references:
        asset = await guarded.http.get(address)
        assert asset.status_code == 200
        assert asset.headers["cache-control"] == "no-cache"
        again = await guarded.http.get(address, headers={"if-none-match": asset.headers["etag"]})
        assert again.status_code == 304
