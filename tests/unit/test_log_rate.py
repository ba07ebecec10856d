"""A flood of one event leaves a few lines in the log, and the number of the others."""

import logging

from graph.telemetry.log_rate import MAX_EVENTS, MAX_LINES_PER_SECOND, RateFilter


class Log:
    def __init__(self) -> None:
        self.now = 0.0
        self._filter = RateFilter(lambda: self.now)

    def log(self, event: object, level: int = logging.INFO) -> bool:
        """Return whether the line passes."""
        return self._filter.filter(logging.LogRecord("a", level, "a.py", 1, event, (), None))


def test_a_second_has_so_many_lines_of_an_event_and_then_the_number_of_those_dropped() -> None:
    log = Log()
    passed = [log.log({"event": "request.rejected"}) for _ in range(1000)]
    assert passed.count(True) == MAX_LINES_PER_SECOND
    assert log.log({"event": "node.registered"})
    log.now = 1.0
    fields: dict[str, object] = {"event": "request.rejected"}
    assert log.log(fields)
    assert fields["suppressed"] == 1000 - MAX_LINES_PER_SECOND
    fields = {"event": "request.rejected"}
    assert log.log(fields)
    assert "suppressed" not in fields


def test_lines_of_libraries_are_limited_too_and_critical_ones_never() -> None:
    log = Log()
    text = "Invalid HTTP request received."
    assert [log.log(text) for _ in range(1000)].count(True) == MAX_LINES_PER_SECOND
    assert all(log.log(text, logging.CRITICAL) for _ in range(1000))
    varied = [log.log(f"line {number}") for number in range(5 * MAX_EVENTS)]
    assert varied.count(True) < MAX_EVENTS + MAX_LINES_PER_SECOND
