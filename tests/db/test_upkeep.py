"""Tokens that have been dead for long are forgotten."""

from db.core.database import Database
from graph.core.settings import Settings
from graph.live.housekeeping import Housekeeping
from graph.telemetry.metrics import Metrics
from tests.support.fleet import rows
from tests.support.keyring import DAY, age_keys, create, revoke, standing


async def test_keys_that_have_been_dead_for_90_days_are_forgotten(database: Database) -> None:
    dead, alive = await create(database), await create(database, lifetime=None)
    await revoke(database, dead.token.public_id)
    for expected in (2, 1):
        await age_keys(database, 46 * DAY)
        await Housekeeping(database, Settings(), Metrics()).purge_keys()
        assert await rows(database, "SELECT count(*) FROM tokens") == [(expected,)]
    assert await standing(database, alive) == [alive]
