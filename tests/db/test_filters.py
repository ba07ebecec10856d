"""The node filter in SQL against plain Python, and in memory against SQL, over random fleets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Select, event, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import Database
from db.core.enums import NodeRole, NodeStatus, NodeType, ProfileType, StatusReason
from db.core.tables import NODE, STATUS_CHANGE, Node, NodeProfile, RoleProfile
from db.registry import node_filter as node_filter_module
from db.registry import nodes, status_changes
from db.registry.node_filter import EVERY_NODE, LabelSelector, NodeFilter
from db.registry.nodes import NodeOrder
from db.registry.status_changes import Transition
from tests.support.fleet import OPERATOR, clear, limit_examples, register
from tests.support.json_documents import DOCUMENTS as JSON_DOCUMENTS
from tests.support.json_documents import prune

LABELS = st.lists(st.sampled_from(["gpu", "router", "a=b", "GPU"]), max_size=3)
TEXTS = st.text("aB%_\\/'", max_size=4)
NAMES = st.sampled_from(["llama", "proxy", "%"])
SCALARS = st.sampled_from([None, True, False, 0, 1, 1.5, "", "1", "llama"])
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "models"]), inner, max_size=3)
    ),
    max_leaves=5,
)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "models"]), DOCUMENTS, max_size=3)


@dataclass(frozen=True)
class Subject:
    """A node as a filter sees it; `profiles` says by name whether each is enabled."""

    node_id: str
    node_name: str
    hostname: str | None
    role: NodeRole
    type: NodeType
    status: NodeStatus
    labels: Sequence[str]
    capabilities: Mapping[str, Any]
    profiles: Mapping[str, bool]


SUBJECTS = st.builds(
    Subject,
    node_id=TEXTS.filter(bool),
    node_name=TEXTS,
    hostname=st.none() | TEXTS,
    role=st.sampled_from(NodeRole),
    type=st.sampled_from(NodeType),
    status=st.sampled_from(NodeStatus),
    labels=LABELS,
    capabilities=OBJECTS,
    profiles=st.dictionaries(NAMES, st.booleans(), max_size=2),
)
FLEETS = st.lists(SUBJECTS, max_size=8, unique_by=lambda subject: subject.node_id)
ROLE_PROFILES = st.dictionaries(
    st.tuples(st.sampled_from(NodeRole), st.sampled_from(NodeType), NAMES),
    st.booleans(),
    max_size=4,
)


def make_optional(choices: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | choices


def make_optional_tuples(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return make_optional(st.lists(values, max_size=3).map(tuple))


FILTERS = st.builds(
    NodeFilter,
    node_ids=make_optional_tuples(TEXTS),
    roles=make_optional_tuples(st.sampled_from(NodeRole)),
    types=make_optional_tuples(st.sampled_from(NodeType)),
    statuses=make_optional_tuples(st.sampled_from(NodeStatus)),
    labels=make_optional(
        st.builds(
            LabelSelector,
            all=make_optional(LABELS.map(tuple)),
            any=make_optional(LABELS.map(tuple)),
            none=make_optional(LABELS.map(tuple)),
        )
    ),
    capabilities=make_optional(OBJECTS.map(lambda value: orjson.dumps(value).decode())),
    profile=make_optional(NAMES),
    search=make_optional(TEXTS),
)
ODD_TEXTS = st.text("aAiI\u0131\u0130kK\u212aßẞ\u03c3ς\u03a3Éé%_\\/日", max_size=3)
"""Letters whose case Python and the locales of databases change in different ways."""

ODD_LABELS = st.lists(ODD_TEXTS, max_size=3)
ODD_SUBJECTS = st.builds(
    replace,
    SUBJECTS,
    node_id=ODD_TEXTS,
    node_name=ODD_TEXTS,
    hostname=st.none() | ODD_TEXTS,
    labels=ODD_LABELS,
    capabilities=st.dictionaries(st.sampled_from(["a", "b", "é", ""]), JSON_DOCUMENTS, max_size=3),
)
ODD_FILTERS = st.builds(
    replace,
    FILTERS,
    node_ids=make_optional_tuples(ODD_TEXTS),
    labels=make_optional(
        st.builds(
            LabelSelector,
            all=make_optional(ODD_LABELS.map(tuple)),
            any=make_optional(ODD_LABELS.map(tuple)),
            none=make_optional(ODD_LABELS.map(tuple)),
        )
    ),
    search=make_optional(ODD_TEXTS),
)
PARTS = ["node_ids", "roles", "types", "statuses", "labels", "capabilities", "profile", "search"]


def contains(whole: Any, part: Any) -> bool:
    """Return PostgreSQL's `@>`, without its exception for a scalar in an array at the top level."""
    if isinstance(part, Mapping):
        return isinstance(whole, Mapping) and all(
            key in whole and contains(whole[key], value) for key, value in part.items()
        )
    if isinstance(part, list):
        return isinstance(whole, list) and all(
            any(contains(element, value) for element in whole) for value in part
        )
    same_kind = isinstance(whole, bool) == isinstance(part, bool)
    return same_kind and not isinstance(whole, (Mapping, list)) and bool(whole == part)


def is_match(
    node_filter: NodeFilter,
    subject: Subject,
    role_profiles: Mapping[tuple[NodeRole, NodeType, str], bool],
) -> bool:
    labels, profiles = node_filter.labels or LabelSelector(), subject.profiles
    texts = [subject.node_id, subject.node_name, subject.hostname or ""]
    name, search = node_filter.profile, node_filter.search
    return (
        (node_filter.node_ids is None or subject.node_id in node_filter.node_ids)
        and (node_filter.roles is None or subject.role in node_filter.roles)
        and (node_filter.types is None or subject.type in node_filter.types)
        and (node_filter.statuses is None or subject.status in node_filter.statuses)
        and (labels.all is None or set(labels.all) <= set(subject.labels))
        and (labels.any is None or bool(set(labels.any) & set(subject.labels)))
        and (labels.none is None or not set(labels.none) & set(subject.labels))
        and (
            node_filter.capabilities is None
            or contains(subject.capabilities, orjson.loads(node_filter.capabilities))
        )
        and (
            name is None
            or profiles.get(name, False)
            or role_profiles.get((subject.role, subject.type, name), False)
        )
        and (search is None or any(search.lower() in text.lower() for text in texts))
    )


async def write_fleet(
    session: AsyncSession,
    fleet: list[Subject],
    role_profiles: Mapping[tuple[NodeRole, NodeType, str], bool],
) -> dict[str, UUID]:
    """Write the nodes and profiles; return the nodes' ids by their node ids."""
    ids: dict[str, UUID] = {subject.node_id: uuid4() for subject in fleet}
    for table, rows in (
        (
            Node,
            [
                {
                    "id": ids[subject.node_id],
                    "node_id": subject.node_id,
                    "node_name": subject.node_name,
                    "hostname": subject.hostname,
                    "node_role": subject.role,
                    "node_type": subject.type,
                    "status": subject.status,
                    "status_reason": "seeded",
                    "labels": subject.labels,
                    "capabilities": subject.capabilities,
                }
                for subject in fleet
            ],
        ),
        (
            NodeProfile,
            [
                {
                    "node_id": ids[subject.node_id],
                    "profile_name": name,
                    "profile_type": ProfileType.LLM,
                    "enabled": enabled,
                }
                for subject in fleet
                for name, enabled in subject.profiles.items()
            ],
        ),
        (
            RoleProfile,
            [
                {
                    "node_role": role,
                    "node_type": kind,
                    "profile_name": name,
                    "profile_type": ProfileType.LLM,
                    "enabled": enabled,
                }
                for (role, kind, name), enabled in role_profiles.items()
            ],
        ),
    ):
        if rows:
            await session.execute(insert(table).values(rows))
    return ids


async def find_node_ids(session: AsyncSession, node_filter: NodeFilter) -> set[str]:
    order = NodeOrder.NODE_ID.to_keyset(descending=False)
    page = await nodes.list_nodes(session, node_filter, order, first=1000, after=None)
    assert await nodes.count_nodes(session, node_filter) == len(page.rows)
    return {node.node_id for node in page.rows}


@given(FLEETS, ROLE_PROFILES, st.lists(FILTERS, min_size=1, max_size=4))
@limit_examples(60)
async def test_filter_finds_exactly_the_matching_nodes(
    database: Database,
    fleet: list[Subject],
    role_profiles: dict[tuple[NodeRole, NodeType, str], bool],
    filters: list[NodeFilter],
) -> None:
    async with database.write() as session:
        await clear(session)
        await write_fleet(session, fleet, role_profiles)
        for whole in filters:
            parts = [NodeFilter(**{part: getattr(whole, part)}) for part in PARTS]
            for node_filter in [whole, *parts]:
                expected = {s.node_id for s in fleet if is_match(node_filter, s, role_profiles)}
                assert await find_node_ids(session, node_filter) == expected


def is_object(document: Any) -> bool:
    return isinstance(document, dict)


@st.composite
def draw_fleet_and_filters(draw: st.DrawFn) -> tuple[list[Subject], list[NodeFilter]]:
    """Draw nodes with any capabilities, and filters by documents that may be part of theirs."""
    fleet = draw(st.lists(ODD_SUBJECTS, max_size=4, unique_by=lambda subject: subject.node_id))
    filters = draw(st.lists(ODD_FILTERS, min_size=1, max_size=3))
    for i, subject in enumerate(fleet):
        part = orjson.dumps(draw(prune(subject.capabilities).filter(is_object))).decode()
        filters += [
            NodeFilter(capabilities=part),
            replace(filters[i % len(filters)], capabilities=part),
        ]
    return fleet, filters


CHANGES = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(NodeStatus), st.booleans()), max_size=8
)
"""Each of the node with that number; the last says whether it is removed at the end."""


@given(draw_fleet_and_filters(), ROLE_PROFILES, CHANGES, st.sampled_from([0, 4096]))
@limit_examples(100)
async def test_changes_in_memory_match_a_filter_when_the_database_says_so(
    database: Database,
    fleet_and_filters: tuple[list[Subject], list[NodeFilter]],
    role_profiles: dict[tuple[NodeRole, NodeType, str], bool],
    changes: list[tuple[int, NodeStatus, bool]],
    max_capabilities_in_python: int,
) -> None:
    fleet, wholes = fleet_and_filters
    async with database.write() as session:
        await clear(session)
        ids = list((await write_fleet(session, fleet, role_profiles)).values())
        changes = [change for change in changes if change[0] < len(ids)]
        for i, status, is_removed in changes:
            transition = Transition(ids[i], None, status, StatusReason.SEEDED)
            await status_changes.apply_transitions(session, [transition])
            removed_at = func.registry_now() if is_removed else None
            await session.execute(
                update(Node).where(NODE.id == ids[i]).values(removed_at=removed_at)
            )
    async with database.open_connection() as connection:
        logged, changed_nodes = await status_changes.list_changes_after(connection, 0)
    assert len(logged) == len(changes)
    filters = [
        node_filter
        for whole in wholes
        for node_filter in (whole, *(NodeFilter(**{part: getattr(whole, part)}) for part in PARTS))
    ]
    conditions = [
        node_filter.to_condition(status=STATUS_CHANGE.status).label(f"filter_{i}")
        for i, node_filter in enumerate(filters)
    ]
    async with database.read() as session:
        rows = (
            await session.execute(
                select(STATUS_CHANGE.revision, *conditions).join(
                    Node, STATUS_CHANGE.node_id == NODE.id
                )
            )
        ).all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node_filter_module, "MAX_CAPABILITIES_IN_PYTHON", max_capabilities_in_python)
        for i, node_filter in enumerate(filters, 1):
            assert await status_changes.match_changes(
                database, logged, changed_nodes, node_filter
            ) == {row[0] for row in rows if row[i]}


async def test_filter_without_conditions_finds_every_registered_node(database: Database) -> None:
    await register(database, "node-3")
    node, _ = await register(database, "node-4")
    async with database.write() as session:
        await nodes.deregister(session, "node-4", note=None, caller=OPERATOR)
    async with database.read() as session:
        assert len(await find_node_ids(session, EVERY_NODE)) == 3
        assert set(await nodes.find_nodes_by_uuid(session, [node.id])) == set()
        assert await nodes.find_node(session, "node-4") is None


async def test_capability_numbers_match_in_any_notation(
    database: Database,
) -> None:
    await register(database, "node-3", capabilities={"gpus": 2, "models": [{"name": "llama"}]})
    for part, expected in (
        ('{"gpus": 2.0}', True),
        ('{"gpus": "2"}', False),
        ('{"models": [{}]}', True),
        ('{"models": [{"name": "llama"}, {"name": "llama"}]}', True),
        ('{"models": {"name": "llama"}}', False),
        ("{}", True),
    ):
        async with database.read() as session:
            node_filter = NodeFilter(node_ids=("node-3",), capabilities=part)
            assert await find_node_ids(session, node_filter) == ({"node-3"} if expected else set())


@pytest.mark.parametrize(
    ("search", "expected"),
    [("THIRD", {"node-3"}), ("macBOOK", {"node-2-macbook-m4max"}), ("node_", set())],
)
async def test_search_matches_part_of_a_text_in_any_case(
    database: Database, search: str, expected: set[str]
) -> None:
    await register(database, "node-3", name="The third")
    async with database.read() as session:
        assert await find_node_ids(session, NodeFilter(search=search)) == expected


async def test_filter_by_labels_or_capabilities_uses_an_index(database: Database) -> None:
    async with database.write() as session:
        await session.execute(
            text("""
            INSERT INTO nodes (node_id, node_name, node_role, node_type, status, status_reason,
                               labels, capabilities)
            SELECT 'fleet-' || n, 'fleet', 'backup', 'worker', 'online', 'registered',
                   ARRAY['label-' || n], jsonb_build_object('models', ARRAY['model-' || n])
            FROM generate_series(1, 3000) AS n""")
        )
        await session.execute(text("ANALYZE nodes"))
        for node_filter, index in (
            (NodeFilter(labels=LabelSelector(all=("label-7",))), "nodes_labels_idx"),
            (NodeFilter(labels=LabelSelector(any=("label-7",))), "nodes_labels_idx"),
            (NodeFilter(capabilities='{"models": ["model-7"]}'), "nodes_capabilities_idx"),
            (NodeFilter(node_ids=("fleet-7",)), "nodes_node_id_key"),
        ):
            query = select(NODE.node_name).where(
                NODE.removed_at.is_(None), node_filter.to_condition()
            )
            assert index in await explain_query(session, query)


async def explain_query(session: AsyncSession, query: Select[Any]) -> str:
    connection = await session.connection()

    @event.listens_for(connection.sync_connection, "before_cursor_execute", retval=True)
    def explain(_: Any, __: Any, statement: str, values: Any, *___: Any) -> tuple[str, Any]:
        return f"EXPLAIN {statement}", values

    lines = await connection.scalars(query)
    event.remove(connection.sync_connection, "before_cursor_execute", explain)
    return "\n".join(lines)
