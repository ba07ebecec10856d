"""Rate limits that processes share: each sends the others, once a second, the use it allowed.

Only use near a limit is sent. Use in other processes is charged here, too, so that all together
allow no more than the limit and what fits into that second. While the database is unavailable,
each process counts alone.
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
from graph.core.item_failures import ITEM_FAILURES, handle_items, skip_poison

log = structlog.get_logger()

INTERVAL_SECONDS = 1.0
TASK = "rate_sync"
MIN_SENT_FRACTION = 0.05
"""The fraction of a rate below which use is not sent: that of 20 processes adds up to one rate."""

MAX_SENT_KEYS = 1000
"""Keys sent at once: those that used most of their rates."""

RateUse = tuple[str, str, float]
"""The limiter's name, the key, and the seconds of its rate that were used."""


_PAYLOAD: TypeAdapter[tuple[str, list[RateUse]]] = TypeAdapter(tuple[str, list[RateUse]])


class RateSync:
    """Sends the use of this process's limiters, and charges them for use elsewhere."""

    def __init__(self, database: Database, limiters: Sequence[RateLimiter]) -> None:
        self._database = database
        self._limiters = {limiter.name: limiter for limiter in limiters}
        self._process_id = secrets.token_hex(8)

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
                    await handle_items(TASK, payloads, self._send)
                except Unavailable as error:
                    log.warning("rate_sync.unavailable", cause=repr(error.__cause__))

    async def _send(self, payloads: Sequence[str]) -> None:
        async with self._database.read() as session:
            await rate_channel.send_rates(session, payloads)

    def make_payloads(self, seconds: float) -> list[str]:
        """Return the payloads for the use since the previous call, this many seconds ago."""
        uses = (
            (limiter.name, key, seconds_used)
            for limiter in self._limiters.values()
            for key, seconds_used in limiter.collect_use(seconds)
            if seconds_used >= MIN_SENT_FRACTION * seconds
        )
        largest = heapq.nlargest(MAX_SENT_KEYS, uses, key=lambda use: use[2])
        return [
            orjson.dumps([self._process_id, batch]).decode()
            for batch in _split_into_batches(largest)
        ]

    def receive(self, payload: str) -> None:
        """Charge the use in a payload. An invalid one is skipped: anyone may send notifications."""
        try:
            sender, uses = _PAYLOAD.validate_json(payload)
        except ValidationError:
            ITEM_FAILURES.labels(TASK).inc()
            log.warning("rate_sync.invalid_payload", payload=payload)
            return
        if sender != self._process_id:
            for name, key, seconds_used in uses:
                with skip_poison(TASK, key=key):
                    if name in self._limiters:  # a newer version may have more limiters
                        self._limiters[name].charge_remote_use(key, seconds_used)


def _split_into_batches(uses: Sequence[RateUse]) -> Iterator[list[RateUse]]:
    """Yield lists that each fit into one payload. A use that fits into none is skipped."""
    batch: list[RateUse] = []
    size = 0
    for use in uses:
        use_size = 0
        with skip_poison(TASK, limiter=use[0], key=use[1]):
            use_size = _measure(use)
        if not use_size:
            continue
        if size + use_size > rate_channel.MAX_PAYLOAD_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(use)
        size += use_size
    if batch:
        yield batch


def _measure(use: RateUse) -> int:
    """Return the bytes that a use takes in a payload.

    Raises: ValueError: no payload is large enough. TypeError: its key is no valid text.
    """
    size = len(orjson.dumps(use)) + 1
    if size > rate_channel.MAX_PAYLOAD_BYTES:
        raise ValueError(f"{size} bytes, of at most {rate_channel.MAX_PAYLOAD_BYTES}")
    return size
