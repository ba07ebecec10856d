"""Rate limits by the generic cell rate algorithm (GCRA): one number for each key.

GCRA is defined in ITU-T I.371; https://brandur.org/rate-limiting describes it for programs.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Self

from db.core.errors import RateLimited

MAX_KEYS = 100_000
MAX_KEY_LENGTH = 300
"""Longer keys are counted by their hashes: 300 characters are more than any name or address has."""

MAX_CHARGE_SECONDS = 60.0
_ROUNDING_SECONDS = 1e-6


class _Account:
    __slots__ = ("paid_until", "uncollected")

    def __init__(self) -> None:
        self.paid_until = 0.0
        self.uncollected = 0.0


class RateLimiter:
    """Allows each key `per_second` on average and `burst` at once.

    Beyond MAX_KEYS the least recently used keys are forgotten and start again.
    """

    def __init__(
        self,
        name: str,
        *,
        per_second: float,
        burst: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._interval = 1 / per_second
        self._tolerance = burst * self._interval
        self._clock = clock
        self._accounts: OrderedDict[str, _Account] = OrderedDict()  # least recently used first

    @classmethod
    def per_minute(cls, name: str, limit: float) -> Self:
        """Return a limiter whose burst is a whole minute's rate."""
        return cls(name, per_second=limit / 60, burst=limit)

    def charge(self, key: str, amount: float = 1) -> None:
        """Charge a key for an amount. Raises RateLimited if that is too much.

        A rejected amount is not charged. An amount larger than the burst passes for an unused key,
        which then waits longer.
        """
        key = _bound_key(key)
        now = self._clock()
        account = self._get_account(key)
        paid_until = max(account.paid_until, now)
        until = paid_until + amount * self._interval
        too_early = until - now - self._tolerance
        if too_early > _ROUNDING_SECONDS and paid_until > now:
            raise self._make_error(min(too_early, paid_until - now))
        account.paid_until = until
        account.uncollected += amount
        self._accounts.move_to_end(key)

    def require_available(self, key: str) -> None:
        """Check that one more would be allowed. Raises RateLimited."""
        account = self._accounts.get(_bound_key(key))
        ahead = 0.0 if account is None else account.paid_until - self._clock()
        too_early = ahead + self._interval - self._tolerance
        if too_early > _ROUNDING_SECONDS and ahead > 0:
            raise self._make_error(too_early)

    def collect_use(self, seconds: float) -> Iterator[tuple[str, float]]:
        """Yield each key used within this many seconds, with its use since the previous call.

        The use is the time in seconds in which the key's rate allows it.
        """
        since = self._clock() - seconds
        for key, account in reversed(self._accounts.items()):
            if account.paid_until < since:
                return
            if account.uncollected:
                yield key, account.uncollected * self._interval
                account.uncollected = 0.0

    def charge_remote_use(self, key: str, seconds: float) -> None:
        """Charge a key for use in another process, in seconds of its rate: one minute at most."""
        account = self._get_account(_bound_key(key))
        paid = min(max(seconds, 0.0), MAX_CHARGE_SECONDS)
        account.paid_until = max(account.paid_until, self._clock()) + paid

    def _get_account(self, key: str) -> _Account:
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = _Account()
            if len(self._accounts) > MAX_KEYS:
                self._accounts.popitem(last=False)
        return account

    def _make_error(self, seconds: float) -> RateLimited:
        return RateLimited(f"too many {self.name}", retryAfterSeconds=round(seconds, 3))


def _bound_key(key: str) -> str:
    """Return the key, or the hash of one that is too long to be kept, and sent to others."""
    if len(key) <= MAX_KEY_LENGTH:
        return key
    return f"sha256:{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()}"
