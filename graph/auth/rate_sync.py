"""Rate limits that processes share: each sends the others, once a second, what it let through.

Only use near a limit is sent. Use in other processes is charged here, too: so all together let
through no more than the limit, and what fits into that second. While the database is away each
process counts alone.
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
"""The part of a rate below which its use is not sent: in twenty processes it adds up to one."""

MAX_SENT_KEYS = 1000
"""Keys in one round: those that used most of their rates."""

RateUse = tuple[str, str, float]
"""The limiter's name, the key, and the seconds of its rate that were used."""


_PAYLOAD: TypeAdapter[tuple[str, list[RateUse]]] = TypeAdapter(tuple[str, list[RateUse]])


class RateSync:
    """Sends the use of this process's limiters, and charges them for use elsewhere."""

    def __init__(self, database: Database, limiters: Sequence[RateLimiter]) -> None:
        self._database = database
        self._limiters = {limiter.name: limiter for limiter in limiters}
        self._process = secrets.token_hex(8)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            now = loop.time()
            payloads = self.make_payloads(now - sent_at)
            sent_at = now
            if payloads:
                try:
                    async with self._database.read() as session:
                        await rate_channel.send_rates(session, payloads)
                except Unavailable as error:
                    log.warning("rate_sync.unavailable", cause=repr(error.__cause__))

    def make_payloads(self, seconds: float) -> list[str]:
        """Return the payloads for the use since the previous call, this many seconds ago."""
        used = (
            (limiter.name, key, used)
            for limiter in self._limiters.values()
            for key, used in limiter.collect_use(seconds)
            if used >= MIN_SENT_FRACTION * seconds
        )
        largest = heapq.nlargest(MAX_SENT_KEYS, used, key=lambda use: use[2])
        return [
            orjson.dumps([self._process, part]).decode() for part in _split_into_payloads(largest)
        ]

    def receive(self, payload: str) -> None:
        """Charge the use in a payload. An invalid one is logged: anyone may send notifications."""
        try:
            sender, uses = _PAYLOAD.validate_json(payload)
        except ValidationError:
            log.warning("rate_sync.invalid_payload")
            return
        if sender != self._process:
            for name, key, used in uses:
                if name in self._limiters:  # a newer version may have more limiters
                    self._limiters[name].charge_remote_use(key, used)


def _split_into_payloads(uses: Sequence[RateUse]) -> Iterator[list[RateUse]]:
    """Yield lists that each fit into one payload."""
    part: list[RateUse] = []
    size = 0
    for use in uses:
        own_size = len(orjson.dumps(use)) + 1
        if size + own_size > rate_channel.MAX_PAYLOAD_BYTES:
            yield part
            part, size = [], 0
        part.append(use)
        size += own_size
    if part:
        yield part
