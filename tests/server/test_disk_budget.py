"""A day of abuse by one agent's token, compressed: the database grows by less than the budget."""

import secrets
from typing import Any

import pytest

from db.access.audit import MAX_REJECTIONS_PER_MINUTE
from db.core.database import Database
from db.core.enums import Role
from graph.auth.caller_limits import ROTATIONS_AT_ONCE
from tests.support.api import BEAT, DEREGISTER, REGISTER
from tests.support.fleet import fetch_rows
from tests.support.live_server import LiveServer, StartServer
from tests.support.tokens import create_token

pytestmark = pytest.mark.usefixtures("logged")

BUDGET = 2 * 1024 * 1024
ROTATE = "mutation { rotateNodeKey { key } }"
SIZE = """
SELECT sum(pg_total_relation_size(oid)) FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
"""
ANSWERS = """
SELECT outcome, sum(count) FROM audit_log
WHERE actor LIKE '%abuser' AND outcome <> 'ok' GROUP BY 1 ORDER BY 1
"""


async def measure_size(database: Database) -> int:
    [(size,)] = await fetch_rows(database, SIZE)
    return int(size)


def make_noise(count: int) -> list[str]:
    """Return texts of 1 kB that no compression shortens by much."""
    return [secrets.token_urlsafe(750) for _ in range(count)]


async def authenticate_as_agent(server: LiveServer, database: Database) -> None:
    token = await create_token(database, Role.AGENT, nodes=["a"], name="abuser")
    server.http.headers["authorization"] = f"Bearer {token.text}"
    await server.execute(REGISTER, input=make_registration())


def make_registration(**fields: Any) -> dict[str, Any]:
    return {"nodeId": "a", "bootId": "boot-1", "role": "BACKUP", "type": "WORKER", **fields}


def get_code(answer: dict[str, Any]) -> str:
    return str(answer["errors"][0]["extensions"]["code"]) if "errors" in answer else "ok"


async def test_abuse_by_one_agent_s_token_stays_within_the_node_s_bytes_of_the_day(
    start_server: StartServer, database: Database
) -> None:
    """Without limits this writes some 15 MB; only the pace is let off, to take seconds."""
    async with start_server(
        auth="required", node_bytes_per_day=BUDGET, node_changes_per_minute=1_000_000
    ) as server:
        await authenticate_as_agent(server, database)
        before = await measure_size(database)
        codes = set()
        for n in range(80):
            report = {"nodeId": "a", "bootId": "boot-1", "sequence": n}
            metrics = {"cpuPercent": 7, "extra": {"noise": make_noise(15)}}
            beat = await server.execute(BEAT, input={**report, "metrics": metrics})
            assert beat["recordHeartbeat"]["status"] == "ONLINE"
            for part in ("capabilities", "metadata"):
                change = make_registration(**{part: {"models": make_noise(60)}})
                codes.add(get_code(await server.post(REGISTER, input=change)))
        assert codes == {"ok", "RATE_LIMITED"}
        for n in range(2 * MAX_REJECTIONS_PER_MINUTE):
            other = f"{n}-" + "x" * 240
            assert get_code(await server.post(DEREGISTER, input={"nodeId": other})) == "FORBIDDEN"
            stranger = make_registration(nodeId=other)
            assert get_code(await server.post(REGISTER, input=stranger)) == "FORBIDDEN"
        rotations = [get_code(await server.post(ROTATE)) for _ in range(ROTATIONS_AT_ONCE + 5)]
        assert rotations == ["ok"] * ROTATIONS_AT_ONCE + ["RATE_LIMITED"] * 5
        assert await measure_size(database) - before < BUDGET
        # What was refused is counted all the same.
        refusals = dict(await fetch_rows(database, ANSWERS))
        assert refusals["FORBIDDEN"] == 4 * MAX_REJECTIONS_PER_MINUTE
        assert refusals["RATE_LIMITED"] > 100
