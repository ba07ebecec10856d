"""Rate limits by the generic cell rate algorithm: one number for each key.

GCRA is of ITU-T I.371; https://brandur.org/rate-limiting tells it for programs.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Self

from graph.errors import RateLimited

MAX_KEYS = 100_000
_ROUNDING_SECONDS = 1e-6


class Quota:
    """`per_second` on average, `burst` at once, for each key.

    The keys that were used longest ago are forgotten when there are too many: they start anew.
    """

    def __init__(
        self,
        what: str,
        *,
        per_second: float,
        burst: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._interval = 1 / per_second
        self._tolerance = burst * self._interval
        self._clock = clock
        self._paid_until: OrderedDict[str, float] = OrderedDict()

    @classmethod
    def per_minute(cls, what: str, most: float) -> Self:
        """As many at once as in a minute."""
        return cls(what, per_second=most / 60, burst=most)

    def take(self, key: str, amount: float = 1) -> None:
        """Raises RateLimited, and takes nothing, when there is not enough left.

        An amount beyond the burst is let through to a key that has used nothing, and paid later.
        """
        now = self._clock()
        paid_until = max(self._paid_until.get(key, now), now)
        until = paid_until + amount * self._interval
        too_early = until - now - self._tolerance
        if too_early > _ROUNDING_SECONDS and paid_until > now:
            raise self._refusal(min(too_early, paid_until - now))
        self._paid_until[key] = until
        self._paid_until.move_to_end(key)
        if len(self._paid_until) > MAX_KEYS:
            self._paid_until.popitem(last=False)

    def require_left(self, key: str) -> None:
        """Raises RateLimited when not even one is left."""
        ahead = self._paid_until.get(key, 0.0) - self._clock()
        too_early = ahead + self._interval - self._tolerance
        if too_early > _ROUNDING_SECONDS and ahead > 0:
            raise self._refusal(too_early)

    def _refusal(self, seconds: float) -> RateLimited:
        return RateLimited(f"too many {self._what}", retryAfterSeconds=round(seconds, 3))
