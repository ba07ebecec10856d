"""Rates that several processes count: each tells the others, once a second, what it let through.

Told is what comes near a limit alone. What the others let through is paid for here too, so all of
them together let through no more than the limit, and what they could within that second. While the
database is away each counts by itself.
"""

import asyncio
import heapq
import secrets
from collections.abc import Iterator, Sequence

import orjson
import structlog
from pydantic import TypeAdapter, ValidationError

from db.core import rate_channel
from db.core.database import Database
from db.core.errors import Unavailable
from graph.auth.rate_limiter import RateLimiter

log = structlog.get_logger()

INTERVAL_SECONDS = 1.0
MIN_SENT_FRACTION = 0.05
"""The part of a rate below which nothing is told: of twenty processes it would be the whole."""

MAX_SENT_KEYS = 1000
"""Keys, at each time; those that used most of their rates."""

RateUse = tuple[str, str, float]
"""The quota's name, the key, and the seconds of its rate that were used."""


_PAYLOAD: TypeAdapter[tuple[str, list[RateUse]]] = TypeAdapter(tuple[str, list[RateUse]])


class RateSync:
    def __init__(self, database: Database, quotas: Sequence[RateLimiter]) -> None:
        self._database = database
        self._quotas = {quota.name: quota for quota in quotas}
        self._own = secrets.token_hex(8)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        told_at = loop.time()
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            now = loop.time()
            payloads = self.make_payloads(now - told_at)
            told_at = now
            if payloads:
                try:
                    async with self._database.read() as session:
                        await rate_channel.send_rates(session, payloads)
                except Unavailable as error:
                    log.warning("rates.not_shared", cause=repr(error.__cause__))

    def make_payloads(self, seconds: float) -> list[str]:
        """Of what was let through since the last time, so many seconds ago."""
        used = (
            (quota.name, key, used)
            for quota in self._quotas.values()
            for key, used in quota.collect_use(seconds)
            if used >= MIN_SENT_FRACTION * seconds
        )
        most = heapq.nlargest(MAX_SENT_KEYS, used, key=lambda told: told[2])
        return [orjson.dumps([self._own, part]).decode() for part in _split_into_payloads(most)]

    def receive(self, payload: str) -> None:
        """Nothing of what no process of ours would say: others may send notifications, too."""
        try:
            whose, told = _PAYLOAD.validate_json(payload)
        except ValidationError:
            log.warning("rates.not_understood")
            return
        if whose != self._own:
            for what, key, used in told:
                if what in self._quotas:  # a newer version may count more
                    self._quotas[what].charge_remote_use(key, used)


def _split_into_payloads(told: Sequence[RateUse]) -> Iterator[list[RateUse]]:
    """As many in each as a payload bears."""
    part: list[RateUse] = []
    size = 0
    for each in told:
        own_size = len(orjson.dumps(each)) + 1
        if size + own_size > rate_channel.MAX_PAYLOAD_BYTES:
            yield part
            part, size = [], 0
        part.append(each)
        size += own_size
    if part:
        yield part
