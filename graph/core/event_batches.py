"""Streams whose events arrive several at once."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, Generic, TypeVar

EventT = TypeVar("EventT")


class EventBatches(AsyncIterator[Any], Generic[EventT]):
    """A subscription's source: plain events in `batches`, which `show` turns into API objects.

    GraphQL iterates over the shown events one by one; the engine reads `batches` itself and calls
    `show` only for an event that no other subscription has shown yet. `same_for_all` says that an
    event looks the same to all callers, whatever their permissions.
    """

    def __init__(
        self,
        batches: AsyncGenerator[Sequence[EventT], None],
        show: Callable[[EventT], Any],
        *,
        same_for_all: bool = False,
    ) -> None:
        self.batches = batches
        self.show = show
        self.same_for_all = same_for_all
        self._pending: deque[EventT] = deque()

    async def __anext__(self) -> Any:
        while not self._pending:
            self._pending.extend(await anext(self.batches))
        return self.show(self._pending.popleft())
