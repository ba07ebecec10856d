"""The bounds of node tokens in the database: where they come from, and that rotation keeps them."""

from db.core.database import Database
from db.core.enums import NodeRole, NodeType
from tests.support.fleet import make_registration
from tests.support.tokens import create_enrolment, enrol, rotate_token


async def test_rotation_keeps_what_binds_a_node_token(database: Database) -> None:
    enrolment = await create_enrolment(
        database, node_role=NodeRole.DEVELOPMENT, node_type=NodeType.WORKER, labels=["gpu"]
    )
    _, issued = await enrol(database, enrolment.token, make_registration("gpu-1"))
    for token in (issued, await rotate_token(database, issued.token)):
        bounds = token.token.node_role, token.token.node_type, token.token.labels
        assert bounds == (NodeRole.DEVELOPMENT, NodeType.WORKER, ["gpu"])
