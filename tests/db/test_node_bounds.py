"""The bounds of node tokens in the database: where they come from, and that rotation keeps them."""

from typing import Any

from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import create_async_engine

from db.core.database import Database
from db.core.enums import NodeRole, NodeType
from db.core.migrate import migrate
from tests.support.fleet import make_registration
from tests.support.tokens import create_enrolment, enrol, rotate_token

INSERT = """
INSERT INTO tokens (id, public_id, secret_hash, name, role, nodes, created_by, enrolled_by,
                    node_role, node_type, labels)
VALUES (CAST(:id AS uuid), :id, '', 'n', :role, :nodes, 'token/root', CAST(:enrolled_by AS uuid),
        :node_role, :node_type, :labels)
"""
FIRST, SECOND, GONE = (f"00000000-0000-0000-0000-00000000000{n}" for n in (1, 2, 9))


def make_row(number: str, **columns: Any) -> dict[str, Any]:
    unset = dict.fromkeys(("enrolled_by", "node_role", "node_type", "labels"))
    return {"id": number, "role": "agent", "nodes": ["gpu-1"], **unset, **columns}


async def test_rotation_keeps_what_binds_a_node_token(database: Database) -> None:
    enrolment = await create_enrolment(
        database, node_role=NodeRole.DEVELOPMENT, node_type=NodeType.WORKER, labels=["gpu"]
    )
    _, issued = await enrol(database, enrolment.token, make_registration("gpu-1"))
    for token in (issued, await rotate_token(database, issued.token)):
        bounds = token.token.node_role, token.token.node_type, token.token.labels
        assert bounds == (NodeRole.DEVELOPMENT, NodeType.WORKER, ["gpu"])


async def test_the_migration_binds_tokens_whose_enrolment_token_is_stored(
    empty_database_url: URL,
) -> None:
    engine = create_async_engine(empty_database_url)
    enrolment = {"role": "enrolment", "nodes": [], "node_role": "development", "labels": ["gpu"]}
    rows = [
        make_row(FIRST, **enrolment),
        make_row(SECOND, role="enrolment", nodes=[], node_type="worker"),
        *(
            make_row(FIRST.replace("0000-0000-", f"0000-{n:04}-", 1), enrolled_by=enrolled_by)
            for n, enrolled_by in enumerate((FIRST, SECOND, GONE, None), 1)
        ),
    ]
    try:
        await migrate(engine, "0008")
        async with engine.begin() as connection:
            await connection.execute(text(INSERT), rows)
        await migrate(engine)
        async with engine.connect() as connection:
            bounds = await connection.execute(
                text(
                    "SELECT node_role, node_type, labels FROM tokens WHERE role = 'agent'"
                    " ORDER BY public_id"
                )
            )
            assert [tuple(row) for row in bounds] == [
                ("development", None, ["gpu"]),
                (None, "worker", None),
                (None, None, None),
                (None, None, None),
            ]
    finally:
        await engine.dispose()
