"""The end of a connection that waits for nothing."""

import asyncio
import socket
import struct

_NO_LINGER = struct.pack("ii", 1, 0)


def reset_connection(transport: asyncio.Transport) -> None:
    """Reset the connection, so that the system also drops the unsent data."""
    plain: socket.socket = transport.get_extra_info("socket")
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
