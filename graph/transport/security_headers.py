"""The headers that tell browsers what they may do with a response; every response has them."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A page has a policy of its own, which must forbid frames, too.
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
_STARTS = {"http.response.start", "websocket.http.response.start"}


class SecurityHeadersMiddleware:
    """Adds the headers to each response, also to that which denies a websocket."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] in _STARTS:
                headers = message["headers"]
                has_policy = any(name == _POLICY[0] for name, _ in headers)
                message["headers"] = [*headers, *_HEADERS, *(() if has_policy else (_POLICY,))]
            await send(message)

        await self._app(scope, receive, send_with_headers)
