"""The pages next to the GraphQL API: the index, health and metrics."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import URL
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from db.core.errors import RegistryError, Unavailable
from graph.core.single_flight import SingleFlight
from graph.core.version import SERVICE_NAME, STARTED_AT, VERSION
from graph.services import Services
from graph.transport.http import make_error_response
from graph.transport.prometheus import PrometheusScrape

LINKS = {
    "dashboard": "/dashboard",
    "graphql": "/graphql",
    "graphiql": "/graphql",
    "health": "/health",
    "metrics": "/metrics",
}
_INDEX_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
_INDEX = (Path(__file__).parent / "static" / "index.html").read_text(encoding="utf-8")


class StatusPages:
    """The request handlers of the pages."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._scrape = PrometheusScrape(services)
        self._pings: SingleFlight[None, None] = SingleFlight(0)

    async def show_index(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(_INDEX.replace("{version}", VERSION), headers=_INDEX_HEADERS)
        return _make_json_response({"service": SERVICE_NAME, "version": VERSION, "links": LINKS})

    async def show_liveness(self, _: Request) -> Response:
        """Answer 200: that the process answers is all it says."""
        return _make_json_response({"status": "alive"})

    async def show_health(self, _: Request) -> Response:
        """Answer 200 when the registry can do its work, else 503; the body names what fails."""
        now = datetime.now(UTC)
        url = self._services.database.url
        try:
            # Shared, so that a flood of these requests does not take the database's connections.
            await asyncio.shield(self._pings.start(None, self._services.database.ping))
            connected = True
        except Unavailable:
            connected = False
        failed = self._services.background_tasks.failed
        healthy = connected and not failed
        details = {} if self._services.authentication.is_required else _describe_database(url)
        body = {
            "status": "healthy" if healthy else "unhealthy",
            "service": SERVICE_NAME,
            "version": VERSION,
            "environment": self._services.settings.env,
            "uptime_seconds": round((now - STARTED_AT).total_seconds(), 3),
            "timestamp": now.isoformat(),
            "database": {"connected": connected, **details},
            "failed_tasks": failed,
        }
        return _make_json_response(body, 200 if healthy else 503)

    async def show_metrics(self, request: Request) -> Response:
        """Answer any authenticated caller; all callers where the settings say so."""
        if not self._services.settings.metrics_open:
            try:
                await self._services.authentication.authenticate_request(request.scope)
            except RegistryError as error:
                return make_error_response(error)
        return Response(await self._scrape.render(), headers={"content-type": CONTENT_TYPE_LATEST})


def _describe_database(url: URL) -> dict[str, Any]:
    """Return details of the database that operators may see and strangers may not."""
    return {
        "host": url.host or url.query.get("host"),
        "port": url.port or int(str(url.query.get("port", 5432))),
        "database": url.database,
    }


def _make_json_response(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")
