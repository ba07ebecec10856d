"""A small router: it subscribes to the nodes it may use, and queries which of them to prefer.

While the registry is unavailable it goes on with the nodes it knew last, and reports their age.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import httpx
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agent import (
    AvailableNodesEvent,
    AvailableNodesSnapshot,
    NodeBecameAvailable,
    NodeBecameUnavailable,
    NodeWithCapabilities,
    NodeWithReason,
    RegistryClient,
    RegistryUnavailableError,
    RequestRejectedError,
    follow_available_nodes,
)

FORWARD_TIMEOUT_SECONDS = 30.0


class AvailableNodes:
    """The nodes that may be used, kept current by a subscription."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeWithReason] = {}
        self._received = asyncio.Event()
        self.changed_at = 0.0

    async def follow(self, registry_url: str) -> None:
        """Apply the events of the registry until cancelled."""
        async with aclosing(follow_available_nodes(registry_url)) as events:
            async for event in events:
                self._apply(event)

    def _apply(self, event: AvailableNodesEvent) -> None:
        match event:
            case AvailableNodesSnapshot(nodes=nodes):
                self._nodes = {node.node_id: node for node in nodes}
            case NodeBecameAvailable(node=node):
                self._nodes[node.node_id] = node
            case NodeBecameUnavailable(node_id=node_id):
                self._nodes.pop(node_id, None)
        self.changed_at = time.monotonic()
        self._received.set()

    async def list_nodes(self, role: str | None, timeout_seconds: float) -> list[NodeWithReason]:
        """Return the nodes of a role, or of all roles, in the order of their ids.

        Raises: TimeoutError: the registry has not sent its first event in time.
        """
        async with asyncio.timeout(timeout_seconds):
            await self._received.wait()
        nodes = [node for _, node in sorted(self._nodes.items())]
        return [node for node in nodes if role is None or node.role == role.upper()]


class Router:
    """The routes of the app, and the connections to the registry that they use."""

    def __init__(self, registry_url: str, *, timeout_seconds: float) -> None:
        self._registry_url = registry_url
        self._timeout_seconds = timeout_seconds
        self._available = AvailableNodes()
        self._client = RegistryClient(registry_url, timeout_seconds=timeout_seconds)
        self._http = httpx.AsyncClient(timeout=FORWARD_TIMEOUT_SECONDS)

    @asynccontextmanager
    async def run(self, _: Starlette) -> AsyncIterator[None]:
        """Follow the available nodes for the lifespan of the app."""
        task = asyncio.create_task(self._available.follow(self._registry_url))
        async with self._client, self._http:
            yield
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def list_nodes(self, request: Request) -> Response:
        """Serve GET /nodes?role=production: the nodes that may be used."""
        role = request.query_params.get("role")
        try:
            nodes = await self._available.list_nodes(role, self._timeout_seconds)
        except TimeoutError:
            return JSONResponse({"error": "the registry has not answered yet"}, 503)
        body = {
            "nodes": [node.model_dump(mode="json") for node in nodes],
            "count": len(nodes),
            "last_change_seconds_ago": round(time.monotonic() - self._available.changed_at, 3),
        }
        return JSONResponse(body)

    async def route(self, request: Request) -> Response:
        """Serve POST /route {"model": …, …}: forward it to the best node that serves the model."""
        try:
            payload: dict[str, Any] = orjson.loads(await request.body())
            answer = await self._client.get_available_nodes({"model": payload["model"]}, limit=3)
        except (ValueError, KeyError, TypeError):
            return JSONResponse({"error": 'send {"model": …}'}, 400)
        except RequestRejectedError as rejection:
            return JSONResponse({"error": rejection.message}, 400)
        except RegistryUnavailableError as error:
            return JSONResponse({"error": f"the registry is unavailable: {error.reason}"}, 503)
        age = {"stale": answer.is_stale, "age_seconds": round(answer.age_seconds, 3)}
        for candidate in answer.value.candidates:
            # A node that fails is skipped: the next candidate is the next best.
            with suppress(httpx.HTTPError, ValueError):
                reply = await self._forward(candidate.node, payload)
                return JSONResponse({"node": candidate.node.node_id, "reply": reply, **age})
        reasons = {node.node_id: node.reasons for node in answer.value.excluded}
        return JSONResponse({"error": "no node can serve it", "excluded": reasons, **age}, 503)

    async def _forward(self, node: NodeWithCapabilities, payload: dict[str, Any]) -> Any:
        """Return the node's reply, or None for a node that names no service, as in the demo."""
        endpoint = find_endpoint(node)
        if endpoint is None:
            return None
        reply = await self._http.post(endpoint, json=payload)
        return reply.raise_for_status().json()


def build_app(registry_url: str, *, timeout_seconds: float = 2.0) -> Starlette:
    """Return the app; `timeout_seconds` is how long a request waits for the registry."""
    router = Router(registry_url, timeout_seconds=timeout_seconds)
    return Starlette(
        routes=[
            Route("/nodes", router.list_nodes),
            Route("/route", router.route, methods=["POST"]),
        ],
        lifespan=router.run,
    )


def find_endpoint(node: NodeWithCapabilities) -> str | None:
    """Return the endpoint of the first service that the node reports, or None."""
    match node.capabilities.get("services"):
        case [{"endpoint": str(endpoint)}, *_]:
            return endpoint
    return None
