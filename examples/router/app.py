"""A small router on the registry: whom it may use it is told, whom to prefer it asks.

It goes on while the registry is away: with the nodes that it knew last, and says since when.
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

FORWARD_SECONDS = 30.0


class Available:
    """The nodes that may be used, as the subscription tells them."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeWithReason] = {}
        self._told = asyncio.Event()
        self.told_at = 0.0

    async def follow(self, registry_url: str) -> None:
        async with aclosing(follow_available_nodes(registry_url)) as events:
            async for event in events:
                self._learn(event)

    def _learn(self, event: AvailableNodesEvent) -> None:
        match event:
            case AvailableNodesSnapshot(nodes=nodes):
                self._nodes = {node.node_id: node for node in nodes}
            case NodeBecameAvailable(node=node):
                self._nodes[node.node_id] = node
            case NodeBecameUnavailable(node_id=node_id):
                self._nodes.pop(node_id, None)
        self.told_at = time.monotonic()
        self._told.set()

    async def of_role(self, role: str | None, wait_seconds: float) -> list[NodeWithReason]:
        """By node id. Raises TimeoutError when nothing was ever told."""
        async with asyncio.timeout(wait_seconds):
            await self._told.wait()
        wanted = None if role is None else role.upper()
        return [
            self._nodes[n] for n in sorted(self._nodes) if wanted in {None, self._nodes[n].role}
        ]


class Router:
    def __init__(self, registry_url: str, *, patience_seconds: float) -> None:
        self._registry_url = registry_url
        self._patience_seconds = patience_seconds
        self._available = Available()
        self._client = RegistryClient(registry_url, timeout_seconds=patience_seconds)
        self._http = httpx.AsyncClient(timeout=FORWARD_SECONDS)

    @asynccontextmanager
    async def running(self, _: Starlette) -> AsyncIterator[None]:
        following = asyncio.create_task(self._available.follow(self._registry_url))
        async with self._client, self._http:
            yield
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def nodes(self, request: Request) -> Response:
        """GET /nodes?role=production"""
        role = request.query_params.get("role")
        try:
            found = await self._available.of_role(role, self._patience_seconds)
        except TimeoutError:
            return JSONResponse({"error": "the registry has told nothing yet"}, 503)
        body = {
            "nodes": [node.model_dump(mode="json") for node in found],
            "count": len(found),
            "last_change_seconds_ago": round(time.monotonic() - self._available.told_at, 3),
        }
        return JSONResponse(body)

    async def route(self, request: Request) -> Response:
        """POST /route {"model": …, …}: to the best node that serves the model."""
        try:
            asked: dict[str, Any] = orjson.loads(await request.body())
            answer = await self._client.get_available_nodes({"model": asked["model"]}, limit=3)
        except (ValueError, KeyError, TypeError):
            return JSONResponse({"error": 'send {"model": …}'}, 400)
        except RequestRejectedError as refusal:
            return JSONResponse({"error": refusal.message}, 400)
        except RegistryUnavailableError as away:
            return JSONResponse({"error": f"the registry is away: {away.reason}"}, 503)
        age = {"stale": answer.is_stale, "age_seconds": round(answer.age_seconds, 3)}
        for candidate in answer.value.candidates:
            with suppress(httpx.HTTPError, ValueError):  # the next best, then
                reply = await self._forwarded(candidate.node, asked)
                return JSONResponse({"node": candidate.node.node_id, "reply": reply, **age})
        why = {left.node_id: left.reasons for left in answer.value.excluded}
        return JSONResponse({"error": "no node can do it", "excluded": why, **age}, 503)

    async def _forwarded(self, node: NodeWithCapabilities, asked: dict[str, Any]) -> Any:
        """None from a node that names no service: the demo ends there."""
        endpoint = endpoint_of(node)
        if endpoint is None:
            return None
        reply = await self._http.post(endpoint, json=asked)
        return reply.raise_for_status().json()


def build_app(registry_url: str, *, patience_seconds: float = 2.0) -> Starlette:
    router = Router(registry_url, patience_seconds=patience_seconds)
    return Starlette(
        routes=[Route("/nodes", router.nodes), Route("/route", router.route, methods=["POST"])],
        lifespan=router.running,
    )


def endpoint_of(node: NodeWithCapabilities) -> str | None:
    """Of the first service that the node says it has."""
    match node.capabilities.get("services"):
        case [{"endpoint": str(endpoint)}, *_]:
            return endpoint
    return None
