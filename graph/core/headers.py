"""The headers of a request as ASGI has them: Starlette's are made anew for each that asks."""

from starlette.types import Scope


def get_header(scope: Scope, name: bytes) -> str | None:
    """Of several with this name, in lower case, one list: RFC 9110, 5.3. None if there is none."""
    values = [value for key, value in scope["headers"] if key == name]
    return b",".join(values).decode("latin-1") if values else None
