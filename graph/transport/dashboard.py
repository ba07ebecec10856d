"""The dashboard's files, which hold no data; its pages read from the GraphQL API."""

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).parent / "static"

_PAGE = STATIC / "dashboard" / "index.html"
_HEADERS = {
    # The data shown comes from registered nodes: none of it may run as script or leave the page.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'; require-trusted-types-for 'script'",
    "cache-control": "no-cache",
}


async def show_dashboard(_: Request) -> Response:
    """Return the one page of the dashboard; its parameters say what it shows."""
    return FileResponse(_PAGE, headers=_HEADERS)


async def redirect_to_dashboard(_: Request) -> Response:
    """Redirect the address with a slash. What follows it in the request is not repeated."""
    return RedirectResponse("/dashboard")


class Assets(StaticFiles):
    """Scripts, styles and images. Pages have addresses and policies of their own.

    Browsers revalidate each file, so that modules of two versions never mix.
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        if path.lower().endswith(".html"):
            raise HTTPException(404)
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "no-cache"
        return response
