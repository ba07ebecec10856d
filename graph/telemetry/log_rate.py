"""The bound on the rate of log lines: a flood of requests must not fill the disk with its log."""

import logging
import time
from collections import Counter
from collections.abc import Callable

MAX_LINES_PER_SECOND = 100
"""Lines of one event in a second; critical ones always pass."""

MAX_EVENTS = 1000
"""Events counted apart in a second; others share a count, since texts of libraries may vary."""


class RateFilter(logging.Filter):
    """Drops the lines of an event beyond MAX_LINES_PER_SECOND.

    The next line of the event has the number of those dropped, as `suppressed`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._second = clock()
        self._lines: Counter[str] = Counter()
        self._suppressed: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        if now >= self._second + 1:
            self._second = now
            self._lines.clear()
        fields = record.msg if isinstance(record.msg, dict) else None  # structlog's events
        event = str(record.msg if fields is None else fields.get("event"))
        if event not in self._lines and len(self._lines) >= MAX_EVENTS:
            event = ""
        self._lines[event] += 1
        if self._lines[event] > MAX_LINES_PER_SECOND and record.levelno < logging.CRITICAL:
            self._suppressed[event] += 1
            return False
        if (suppressed := self._suppressed.pop(event, 0)) and fields is not None:
            fields["suppressed"] = suppressed
        if len(self._suppressed) > MAX_EVENTS:
            self._suppressed.clear()
        return True
