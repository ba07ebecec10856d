"""Readers of status changes, as the agent's client follows them."""

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
HASTY = Clock(uniform=lambda _low, _high: 0.005)


def follow_changes(url: str, **given: Any) -> AbstractAsyncContextManager[Events]:
    return aclosing(follow_status_changes(url, **{"clock": HASTY, **given}))


async def read_event(events: Events) -> StatusEvent:
    async with asyncio.timeout(SECONDS):
        return await anext(events)


async def read_changes(events: Events, count: int) -> list[int]:
    """The revisions of the next changes; bookmarks are passed over."""
    revisions: list[int] = []
    while len(revisions) < count:
        event = await read_event(events)
        assert not isinstance(event, ResyncRequired)
        if isinstance(event, NodeStatusChanged):
            revisions.append(event.revision)
    return revisions
