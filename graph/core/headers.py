"""The headers of an ASGI request, read without the `Headers` that Starlette builds for each use."""

from starlette.types import Scope


def get_header(scope: Scope, name: bytes) -> str | None:
    """Return the header of this name (in lower case), or None if the request has none.

    Several headers of one name are joined by commas (RFC 9110, section 5.3).
    """
    values = [value for key, value in scope["headers"] if key == name]
    return b",".join(values).decode("latin-1") if values else None
