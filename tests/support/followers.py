"""Readers of status changes through the agent's client."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

from agent.follow import follow_status_changes
from agent.pace import Clock
from agent.replies import (
    NodeStatusChanged,
    ResyncRequired,
    StatusEvent,
)

Events = AsyncGenerator[StatusEvent, None]
SECONDS = 10
FAST_CLOCK = Clock(uniform=lambda _low, _high: 0.005)


def follow_changes(url: str, **arguments: Any) -> AbstractAsyncContextManager[Events]:
    return aclosing(follow_status_changes(url, **{"clock": FAST_CLOCK, **arguments}))


async def read_event(events: Events) -> StatusEvent:
    async with asyncio.timeout(SECONDS):
        return await anext(events)


async def read_changes(events: Events, count: int) -> list[int]:
    """Return the revisions of the next changes, without bookmarks."""
    revisions: list[int] = []
    while len(revisions) < count:
        event = await read_event(events)
        assert not isinstance(event, ResyncRequired)
        if isinstance(event, NodeStatusChanged):
            revisions.append(event.revision)
    return revisions
