"""A signal to every task that waits at this moment; a task that waits later waits for the next."""

import asyncio


class Broadcast:
    """An event that resets itself: each `notify` wakes all who wait, once."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self) -> None:
        """Return at the next `notify`."""
        await self._event.wait()
