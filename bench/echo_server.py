"""The limit to measure against: the same server and the same bytes, with nothing in between.

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
    """Sends each second message it gets as often as the one before it says."""
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
    """Sends each message back."""
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


async def echo_json(request: Request) -> JSONResponse:
    return JSONResponse(await request.json())


def serve(app: Starlette) -> None:
    """As the registry is served."""
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
    )
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        uvicorn.Server(config).run(sockets=[listening])


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
