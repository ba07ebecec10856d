"""Streams whose events come several at once."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Generic, TypeVar

EventT = TypeVar("EventT")


class Batched(AsyncIterator[EventT], Generic[EventT]):
    """The events one by one, as GraphQL has them; or all that came at once, by `batches`.

    `alike` are events that look the same to all callers, whatever their rights.
    """

    def __init__(
        self, batches: AsyncGenerator[Sequence[EventT], None], *, alike: bool = False
    ) -> None:
        self.batches = batches
        self.alike = alike
        self._begun: deque[EventT] = deque()

    async def __anext__(self) -> EventT:
        while not self._begun:
            self._begun.extend(await anext(self.batches))
        return self._begun.popleft()
