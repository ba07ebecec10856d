"""Rate limits by the generic cell rate algorithm: one number for each key.

GCRA is of ITU-T I.371; https://brandur.org/rate-limiting tells it for programs.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Self

from graph.core.errors import RateLimited

MAX_KEYS = 100_000
MAX_CHARGE_SECONDS = 60.0
_ROUNDING_SECONDS = 1e-6


class _Account:
    __slots__ = ("paid_until", "taken")

    def __init__(self) -> None:
        self.paid_until = 0.0
        self.taken = 0.0


class RateLimiter:
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
        self.name = what
        self._interval = 1 / per_second
        self._tolerance = burst * self._interval
        self._clock = clock
        self._accounts: OrderedDict[str, _Account] = OrderedDict()  # by when they were used

    @classmethod
    def per_minute(cls, what: str, most: float) -> Self:
        """As many at once as in a minute."""
        return cls(what, per_second=most / 60, burst=most)

    def take(self, key: str, amount: float = 1) -> None:
        """Raises RateLimited, and takes nothing, when there is not enough left.

        An amount beyond the burst is let through to a key that has used nothing, and paid later.
        """
        now = self._clock()
        account = self._account(key)
        paid_until = max(account.paid_until, now)
        until = paid_until + amount * self._interval
        too_early = until - now - self._tolerance
        if too_early > _ROUNDING_SECONDS and paid_until > now:
            raise self._make_error(min(too_early, paid_until - now))
        account.paid_until = until
        account.taken += amount
        self._accounts.move_to_end(key)

    def require_available(self, key: str) -> None:
        """Raises RateLimited when not even one is left."""
        account = self._accounts.get(key)
        ahead = 0.0 if account is None else account.paid_until - self._clock()
        too_early = ahead + self._interval - self._tolerance
        if too_early > _ROUNDING_SECONDS and ahead > 0:
            raise self._make_error(too_early)

    def collect_use(self, seconds: float) -> Iterator[tuple[str, float]]:
        """Of each key that was used within the last seconds: for how long its rate would give what
        was taken since this was asked before.
        """
        since = self._clock() - seconds
        for key, account in reversed(self._accounts.items()):
            if account.paid_until < since:
                return
            if account.taken:
                yield key, account.taken * self._interval
                account.taken = 0.0

    def charge_remote_use(self, key: str, seconds: float) -> None:
        """What was let through elsewhere, as `used` has it: it is paid for here, up to a minute."""
        account = self._account(key)
        paid = min(max(seconds, 0.0), MAX_CHARGE_SECONDS)
        account.paid_until = max(account.paid_until, self._clock()) + paid

    def _account(self, key: str) -> _Account:
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = _Account()
            if len(self._accounts) > MAX_KEYS:
                self._accounts.popitem(last=False)
        return account

    def _make_error(self, seconds: float) -> RateLimited:
        return RateLimited(f"too many {self.name}", retryAfterSeconds=round(seconds, 3))
