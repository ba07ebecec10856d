"""The dashboard: files that hold no data, for anybody; its pages ask over GraphQL as others do."""

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).parent / "static"

_PAGE = STATIC / "dashboard" / "index.html"
_HEADERS = {
    # What it shows came from whoever registers nodes: nothing of it may run, or leave.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'; require-trusted-types-for 'script'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


async def show_dashboard(_: Request) -> Response:
    """One page for all addresses of the dashboard, which are told apart by their parameters."""
    return FileResponse(_PAGE, headers=_HEADERS)


class Assets(StaticFiles):
    """What pages are made of. Pages themselves have addresses, and policies, of their own.

    Browsers look each time whether a file changed: modules of two versions never meet.
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        if path.lower().endswith(".html"):
            raise HTTPException(404)
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "no-cache"
        response.headers["x-content-type-options"] = "nosniff"
        return response
