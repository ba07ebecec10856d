"""Pages of nodes, while nodes are added and removed."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, insert, update
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import Database
from db.core.errors import BadInput
from db.core.pagination import MAX_PAGE_SIZE, Keyset, Page
from db.core.tables import NODE, Node
from db.registry import nodes
from db.registry.node_filter import EVERY_NODE, NodeFilter
from db.registry.nodes import NodeOrder
from tests.support.fleet import clear, limit_examples

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
INSTANTS = st.integers(0, 3).map(lambda n: EPOCH + timedelta(microseconds=n))
NAMES = st.sampled_from(["a", "B", "b", "ä", "Z", "a b", "%", "'", "\\", "🦙"])
NEW_NODE = st.fixed_dictionaries(
    {
        "node_id": st.text("abAB-_.1", min_size=1, max_size=3),
        "node_name": NAMES,
        "status_since": INSTANTS,
        "registered_at": INSTANTS,
    }
)
FLEETS = st.lists(NEW_NODE, max_size=12, unique_by=lambda node: node["node_id"])


async def insert_nodes(session: AsyncSession, fleet: list[dict[str, Any]]) -> set[UUID]:
    if not fleet:
        return set()
    rest = {
        "node_role": "backup",
        "node_type": "worker",
        "status": "offline",
        "status_reason": "seeded",
    }
    ids = await session.scalars(
        insert(Node).returning(NODE.id),
        [{"id": uuid5(NAMESPACE_OID, node["node_id"]), **node, **rest} for node in fleet],
    )
    return set(ids)


async def read_page(
    session: AsyncSession, order: Keyset, first: int, after: str | None = None
) -> Page[Node]:
    return await nodes.list_nodes(session, EVERY_NODE, order, first=first, after=after)


@given(
    st.data(),
    st.tuples(st.sampled_from(NodeOrder), st.sampled_from(["asc", "desc"])),
    st.integers(1, 4),
    FLEETS,
)
@limit_examples(60)
async def test_unchanged_node_is_listed_once_in_order_while_others_change(
    database: Database,
    data: st.DataObject,
    order_and_direction: tuple[NodeOrder, str],
    first: int,
    fleet: list[dict[str, Any]],
) -> None:
    node_order, descending = order_and_direction[0], order_and_direction[1] == "desc"
    order = node_order.to_keyset(descending=descending)
    listed: list[UUID] = []
    moved: set[UUID] = set()
    async with database.write() as session:
        await clear(session)
        staying = await insert_nodes(session, fleet)
        used_node_ids, cursor = {node["node_id"] for node in fleet}, None
        while True:
            page = await read_page(session, order, first, cursor)
            assert len(page.rows) <= first
            listed += [node.id for node in page.rows]
            if not page.has_next:
                break
            assert len(page.rows) == first
            cursor = order.encode_cursor(*node_order.get_key(page.rows[-1]))
            removed = data.draw(
                st.sets(st.sampled_from([*sorted(staying, key=str), None]), max_size=2)
            )
            removed &= staying
            await session.execute(delete(Node).where(NODE.id.in_(removed)))
            staying -= removed
            renamed = data.draw(
                st.sets(st.sampled_from([*sorted(staying, key=str), None]), max_size=2)
            )
            renamed &= staying
            await session.execute(
                update(Node).where(NODE.id.in_(renamed)).values(node_name=data.draw(NAMES))
            )
            if node_order is NodeOrder.NAME:
                moved |= {node for node in renamed if node}
            added = [
                node
                for node in data.draw(FLEETS.map(lambda fleet: fleet[:3]))
                if node["node_id"] not in used_node_ids
            ]
            used_node_ids |= {node["node_id"] for node in added}
            await insert_nodes(session, added)
        all_nodes = await read_page(session, order, MAX_PAGE_SIZE)
    # A node that moves within the list may appear twice, or not at all.
    steady = staying - moved
    unmoved = [node for node in listed if node not in moved]
    assert len(unmoved) == len(set(unmoved))
    assert [node for node in listed if node in steady] == [
        node.id for node in all_nodes.rows if node.id in steady
    ]
    if node_order in {NodeOrder.STATUS_SINCE, NodeOrder.REGISTERED_AT}:
        keys = [node_order.get_key(node) for node in all_nodes.rows]
        assert keys == sorted(keys, reverse=descending)


async def test_pages_of_a_filter_list_the_matching_nodes(database: Database) -> None:
    order = NodeOrder.NODE_ID.to_keyset(descending=False)
    async with database.write() as session:
        await clear(session)
        await insert_nodes(
            session,
            [{"node_id": f"{kind}-{n}", "node_name": kind} for n in range(5) for kind in "ab"],
        )
        node_filter, cursor, listed = NodeFilter(search="b"), None, []
        while True:
            page = await nodes.list_nodes(session, node_filter, order, first=2, after=cursor)
            listed += [node.node_id for node in page.rows]
            if not page.has_next:
                break
            cursor = order.encode_cursor(*NodeOrder.NODE_ID.get_key(page.rows[-1]))
        assert listed == [f"b-{n}" for n in range(5)]
        assert await nodes.count_nodes(session, node_filter) == 5


@pytest.mark.parametrize("first", [0, 1, 2, 3, MAX_PAGE_SIZE])
async def test_page_has_the_requested_size_and_reports_more(database: Database, first: int) -> None:
    async with database.read() as session:
        page = await read_page(session, NodeOrder.NODE_ID.to_keyset(descending=False), first)
    assert len(page.rows) == min(first, 2)
    assert page.has_next == (first < 2)


@pytest.mark.parametrize("first", [-1, MAX_PAGE_SIZE + 1, 2**63])
async def test_page_of_an_invalid_size_is_rejected(database: Database, first: int) -> None:
    with pytest.raises(BadInput, match="first"):
        async with database.read() as session:
            await read_page(session, NodeOrder.NODE_ID.to_keyset(descending=False), first)
