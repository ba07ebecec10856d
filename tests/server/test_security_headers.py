"""What every response tells browsers: no frames, no guessed types, no referrer."""

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import URL
from websockets.exceptions import InvalidStatus

from tests.support.live_server import LiveServer, run_server
from tests.support.transport_ws import open_websocket

pytestmark = pytest.mark.asyncio(loop_scope="module")

HTML = {"accept": "text/html"}
REVISION = {"query": "{ registry { revision } }"}
STREAM = {"accept": "text/event-stream"}
REQUESTS: dict[str, tuple[str, str, dict[str, object]]] = {
    "the index as a page": ("GET", "/", {"headers": HTML}),
    "the index as JSON": ("GET", "/", {}),
    "GraphiQL": ("GET", "/graphql", {"headers": HTML}),
    "the dashboard": ("GET", "/dashboard", {"headers": HTML}),
    "a redirect": ("GET", "/dashboard/?node=a", {}),
    "a script": ("GET", "/static/dashboard/app.js", {}),
    "a script of GraphiQL": ("GET", "/static/graphiql/graphiql.min.js", {}),
    "health": ("GET", "/health", {}),
    "metrics": ("GET", "/metrics", {}),
    "a response": ("POST", "/graphql", {"json": REVISION}),
    "a stream": ("POST", "/graphql", {"json": REVISION, "headers": STREAM}),
    "a rejection": ("POST", "/graphql", {"json": {"query": "{"}}),
    "a rejected method": ("PUT", "/graphql", {}),
    "a rejected method of a page": ("POST", "/dashboard", {}),
    "an unknown page": ("GET", "/nothing", {"headers": HTML}),
    "an unknown file": ("GET", "/static/nothing.html", {"headers": HTML}),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secured_server(
    shared_database_url: URL, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[LiveServer]:
    folder = tmp_path_factory.mktemp("secured")
    async with run_server(shared_database_url, folder, auth="required") as live:
        yield live


def assert_secured(headers: httpx.Headers) -> None:
    assert headers.get_list("x-content-type-options") == ["nosniff"]
    assert headers.get_list("x-frame-options") == ["DENY"]
    assert headers.get_list("referrer-policy") == ["no-referrer"]
    [policy] = headers.get_list("content-security-policy")
    directives = {directive.strip() for directive in policy.split(";")}
    assert "frame-ancestors 'none'" in directives
    script_source = next(
        (d for d in directives if d.startswith("script-src")),
        next(d for d in directives if d.startswith("default-src")),
    )
    assert "unsafe" not in script_source


@pytest.mark.parametrize("name", REQUESTS)
async def test_every_response_has_the_security_headers(
    shared_server: LiveServer, secured_server: LiveServer, name: str
) -> None:
    method, path, options = REQUESTS[name]
    for server in (shared_server, secured_server):
        response = await server.http.request(method, path, **options)  # type: ignore[arg-type]
        assert_secured(response.headers)


async def test_a_denied_websocket_has_the_security_headers(shared_server: LiveServer) -> None:
    with pytest.raises(InvalidStatus) as denial:
        async with open_websocket(
            shared_server.websocket_url, headers={"origin": "https://elsewhere.example"}
        ):
            pass
    assert_secured(httpx.Headers(list(denial.value.response.headers.raw_items())))


async def test_a_redirect_repeats_neither_host_nor_query(shared_server: LiveServer) -> None:
    for path in ("/dashboard/", "/health/", "/static", "/graphql/"):
        response = await shared_server.http.get(f"{path}?node=a", headers={"host": "127.0.0.1:1"})
        assert response.headers.get("location") in {None, "/dashboard"}
