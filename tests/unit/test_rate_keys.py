"""Keys of rate limits are bounded where they enter, whatever a caller sent."""

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL

from db.core import rate_channel
from db.core.database import Database
from graph.auth.rate_limiter import MAX_KEY_LENGTH, RateLimiter
from graph.auth.rate_sync import RateSync
from tests.support.item_failures import count_item_failures

UNREACHABLE = Database(URL.create("postgresql+asyncpg", host="127.0.0.1", port=1))
MAX_NOTIFY_BYTES = 8000

# The second kind takes the most bytes as JSON.
KEYS = st.text(max_size=10_000) | st.integers(0, 9000).map(lambda length: "\x01" * length)


def make_limiter() -> RateLimiter:
    return RateLimiter("requests from one address", per_second=1, burst=2, clock=lambda: 1000.0)


@given(st.lists(KEYS, unique=True, max_size=20))
def test_every_use_fits_into_a_payload(keys: list[str]) -> None:
    failures = count_item_failures("rate_sync")
    limiter = make_limiter()
    for key in keys:
        limiter.charge(key)
    payloads = RateSync(UNREACHABLE, [limiter]).make_payloads(1)
    assert all(len(payload.encode()) < MAX_NOTIFY_BYTES for payload in payloads)
    assert "".join(payloads).count("requests") == len(keys)
    assert count_item_failures("rate_sync") == failures
    other = make_limiter()
    receiver = RateSync(UNREACHABLE, [other])
    for payload in payloads:
        receiver.receive(payload)
    kept = [key for key, _ in limiter.collect_use(1e9)]
    assert all(len(key) <= MAX_KEY_LENGTH for key in kept)


def test_long_keys_are_counted_apart_and_alike_in_every_process() -> None:
    first, second = "x" * 8100, "x" * 8099 + "y"
    limiter, other = make_limiter(), make_limiter()
    limiter.charge(first, 2)
    assert len(list(limiter.collect_use(1))) == 1
    limiter.charge(second, 2)
    [payload] = RateSync(UNREACHABLE, [limiter]).make_payloads(1)
    RateSync(UNREACHABLE, [other]).receive(payload)
    other.require_available(first)
    assert len(payload) < rate_channel.MAX_PAYLOAD_BYTES
