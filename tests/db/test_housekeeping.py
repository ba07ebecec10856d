"""Housekeeping purges tokens that ended long ago."""

from db.core.database import Database
from graph.core.settings import Settings
from graph.live.housekeeping import Housekeeping
from graph.telemetry.metrics import Metrics
from tests.support.fleet import fetch_rows
from tests.support.tokens import DAY, age_tokens, create_token, list_valid_tokens, revoke_token


async def test_tokens_that_ended_90_days_ago_are_purged(database: Database) -> None:
    revoked, valid = await create_token(database), await create_token(database, lifetime=None)
    await revoke_token(database, revoked.token.public_id)
    for expected in (2, 1):
        await age_tokens(database, 46 * DAY)
        await Housekeeping(database, Settings(), Metrics()).purge_tokens()
        assert await fetch_rows(database, "SELECT count(*) FROM tokens") == [(expected,)]
    assert await list_valid_tokens(database, valid) == [valid]
