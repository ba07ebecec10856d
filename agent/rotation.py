"""The rotation of the node token, between two heartbeats."""

import asyncio
from datetime import datetime

import structlog

from agent import documents
from agent.credentials import Credentials
from agent.errors import RegistryError
from agent.identity import StateError
from agent.replies import RotateNodeKeyData
from agent.transport import RegistryTransport

# The next heartbeat must not come late.
ROTATION_TIMEOUT_SECONDS = 3.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()


async def rotate_token_if_due(
    transport: RegistryTransport, credentials: Credentials, now: datetime
) -> None:
    """Rotate the node token if that is due at `now`, the registry's time.

    A rotation that fails, or takes too long, is postponed and logged. The next one makes the
    registry revoke a token that it created, but whose text was lost.
    """
    if not credentials.is_rotation_due(now):
        return
    at_least_seconds = 0.0
    try:
        async with asyncio.timeout(ROTATION_TIMEOUT_SECONDS):
            data = await transport.execute(documents.ROTATE_NODE_KEY, {}, RotateNodeKeyData)
        rotated = data.rotate_node_key
        credentials.save_node_token(rotated.key, rotated.key_expires_at, obtained_at=now)
    except TimeoutError:
        await transport.aclose()
        reason = f"no answer within {ROTATION_TIMEOUT_SECONDS:g} s"
    except RegistryError as error:
        reason, at_least_seconds = str(error), error.retry_after_seconds
    except StateError as error:
        reason = str(error)
    else:
        log.info("token.rotated", token_expires_at=str(rotated.key_expires_at))
        return
    delay = credentials.postpone_rotation(now, at_least_seconds)
    log.warning("token_rotation.failed", reason=reason, retry_in_seconds=round(delay, 1))
