"""The baseline: a bare Starlette app on the same server as the registry, with the same bytes.

`python -m bench.echo_server DESCRIPTOR` serves on the listening socket that it inherits.
"""

import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect


async def repeat_messages(websocket: WebSocket) -> None:
    """Read pairs of messages, a count and a text, and send each text that many times."""
    await websocket.accept()
    try:
        while True:
            count = int(await websocket.receive_text())
            text = await websocket.receive_text()
            for _ in range(count):
                await websocket.send_text(text)
    except WebSocketDisconnect:
        pass


async def echo_messages(websocket: WebSocket) -> None:
    """Send each message back."""
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


async def echo_json(request: Request) -> JSONResponse:
    """Parse the body as JSON and send it back."""
    return JSONResponse(await request.json())


def serve(app: Starlette) -> None:
    """Serve the app with the registry's uvicorn options on the socket named by the first argument.

    The call returns when the process is asked to stop.
    """
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
    )
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    serve(
        Starlette(
            routes=[
                WebSocketRoute("/repeat", repeat_messages),
                WebSocketRoute("/echo", echo_messages),
                Route("/echo", echo_json, methods=["POST"]),
            ]
        )
    )
