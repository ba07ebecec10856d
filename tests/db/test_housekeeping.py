"""Tokens that have been dead for long are forgotten."""

from db.core.database import Database
from graph.core.settings import Settings
from graph.live.housekeeping import Housekeeping
from graph.telemetry.metrics import Metrics
from tests.support.fleet import fetch_rows
from tests.support.keyring import DAY, age_tokens, create_token, list_valid_tokens, revoke_token


async def test_keys_that_have_been_dead_for_90_days_are_forgotten(database: Database) -> None:
    dead, alive = await create_token(database), await create_token(database, lifetime=None)
    await revoke_token(database, dead.token.public_id)
    for expected in (2, 1):
        await age_tokens(database, 46 * DAY)
        await Housekeeping(database, Settings(), Metrics()).purge_tokens()
        assert await fetch_rows(database, "SELECT count(*) FROM tokens") == [(expected,)]
    assert await list_valid_tokens(database, alive) == [alive]
