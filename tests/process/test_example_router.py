"""The router of the examples as a process, with a registry that is killed and restarted."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import uvicorn
from sqlalchemy import URL
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.support.paths import ROOT
from tests.support.registry_process import Server, find_free_port

SECONDS = 30

REGISTER = """
mutation Register($input: RegisterNodeInput!) { registerNode(input: $input) { created } }
"""


@asynccontextmanager
async def run_router(registry_url: str) -> AsyncIterator[httpx.AsyncClient]:
    port = find_free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.router", registry_url),
        cwd=ROOT,
        env={**os.environ, "ROUTER_PORT": str(port)},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
            yield http
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def run_model_server() -> AsyncIterator[str]:
    """Run the model server of a node, which repeats the prompt."""

    async def reply(request: Request) -> JSONResponse:
        return JSONResponse({"said": (await request.json())["prompt"]})

    port = find_free_port()
    app = Starlette(routes=[Route("/", reply, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, lifespan="off"))
    task = asyncio.create_task(server.serve())
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        await task


async def register(registry_url: str, **fields: Any) -> None:
    node = {"role": "PRODUCTION", "type": "WORKER", "bootId": "b", **fields}
    async with httpx.AsyncClient() as http:
        body = {"query": REGISTER, "variables": {"input": node}}
        reply = await http.post(f"{registry_url}/graphql", json=body)
        assert "errors" not in reply.json()


async def wait_for_reply(http: httpx.AsyncClient, path: str, is_expected: Any) -> dict[str, Any]:
    async with asyncio.timeout(SECONDS):
        while True:
            with suppress(httpx.TransportError):
                reply = await http.get(path)
                body: dict[str, Any] = reply.json()
                if reply.status_code == 200 and is_expected(body):
                    return body
            await asyncio.sleep(0.02)


def read_node_ids(body: dict[str, Any]) -> list[str]:
    return [node["node_id"] for node in body["nodes"]]


async def test_the_router_keeps_routing_while_the_registry_is_killed_and_restarted(
    database_url: URL,
) -> None:
    url = database_url.render_as_string(hide_password=False)
    server = Server(find_free_port(), {"NODE_REGISTRY_DATABASE_URL": url})
    await server.start()
    await server.wait_until_ready()
    try:
        async with run_model_server() as endpoint, run_router(server.url) as http:
            await wait_for_reply(http, "/nodes", lambda body: body["count"] == 0)
            services = [{"name": "llm", "endpoint": endpoint}]
            capabilities = {"models": ["llama"], "services": services}
            await register(server.url, nodeId="a", capabilities=capabilities)
            await register(server.url, nodeId="b", role="BACKUP")
            await wait_for_reply(http, "/nodes", lambda body: read_node_ids(body) == ["a", "b"])
            await wait_for_reply(
                http, "/nodes?role=backup", lambda body: read_node_ids(body) == ["b"]
            )

            prompt = {"model": "llama", "prompt": "hello"}
            reply = (await http.post("/route", json=prompt)).json()
            assert reply == {
                "node": "a",
                "reply": {"said": "hello"},
                "stale": False,
                "age_seconds": 0.0,
            }
            rejected = await http.post("/route", json={"model": "gpt"})
            assert rejected.status_code == 503
            assert "does not serve model gpt" in rejected.json()["excluded"]["a"]
            assert (await http.post("/route", content="nonsense")).status_code == 400

            await server.kill()
            for _ in range(20):
                reply = (await http.post("/route", json=prompt)).json()
                assert (reply["node"], reply["stale"]) == ("a", True)
                assert read_node_ids((await http.get("/nodes")).json()) == ["a", "b"]

            await server.start()
            await server.wait_until_ready()
            await register(server.url, nodeId="c")
            await wait_for_reply(http, "/nodes", lambda body: "c" in read_node_ids(body))
            async with asyncio.timeout(SECONDS):
                while (await http.post("/route", json=prompt)).json()["stale"]:
                    await asyncio.sleep(0.05)
    finally:
        await server.kill()
