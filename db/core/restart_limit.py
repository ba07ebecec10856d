"""The rule by which whatever runs for long is started again after it ended, and when not any more.

It knows lifetimes alone, not causes: a run that served and died at once counts like one that could
not start.
"""

from dataclasses import dataclass

_MAX_EXPONENT = 30


@dataclass(slots=True)
class RestartLimit:
    """Counts consecutive short runs; gives up after `max_short_runs` of them.

    A run of at least `steady_seconds` starts the count again. The delay before a restart doubles
    with each short run, up to the longest.
    """

    max_short_runs: int = 8
    """With the default delays they take more than 16 s: a database may be restarting."""
    steady_seconds: float = 60.0
    shortest_delay_seconds: float = 0.1
    longest_delay_seconds: float = 5.0
    short_runs: int = 0

    def record_run(self, seconds: float) -> float | None:
        """Record how long a run lasted.

        Return the seconds to wait before the next run, or None if there must be none.
        """
        self.short_runs = 0 if seconds >= self.steady_seconds else self.short_runs + 1
        if self.short_runs >= self.max_short_runs:
            return None
        factor = 2.0 ** min(self.short_runs, _MAX_EXPONENT)
        return min(self.longest_delay_seconds, self.shortest_delay_seconds * factor)
