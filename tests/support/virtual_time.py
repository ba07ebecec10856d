"""An event loop whose clock jumps to the next timer instead of waiting for it."""

import asyncio
import selectors

_MICROSECOND = 1e-6


class _JumpingSelector(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(None if timeout is None else 0)
        if not events and timeout is not None:
            self.now += timeout + _MICROSECOND  # or rounding would keep a late timer from firing
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop in which hours pass in milliseconds; it must wait for no thread or other process."""

    def __init__(self) -> None:
        self._jumping_selector = _JumpingSelector()
        super().__init__(self._jumping_selector)

    def time(self) -> float:
        return self._jumping_selector.now
