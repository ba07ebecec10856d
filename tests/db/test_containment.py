"""Containment in Python gives the results of PostgreSQL's `@>`."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.core import jsonb_contains
from db.core.database import Database
from db.core.jsonb_contains import contains
from tests.support.fleet import limit_examples
from tests.support.json_documents import DOCUMENTS, prune

PAIRS = DOCUMENTS.flatmap(
    lambda whole: st.tuples(
        st.just(whole),
        st.lists(
            prune(whole)
            | prune(whole).map(lambda part: [part])
            | st.sampled_from([e for e in whole if not isinstance(e, (dict, list))] or [None])
            if isinstance(whole, list)
            else prune(whole),
            min_size=1,
            max_size=4,
        ),
    )
)


async def query_postgres(session: AsyncSession, whole: str, part: str) -> tuple[bool, str]:
    """Return whether PostgreSQL finds the part contained, and the first text as it returns it."""
    query = """
    SELECT CAST(CAST(:whole AS text) AS jsonb) @> CAST(CAST(:part AS text) AS jsonb),
           CAST(CAST(CAST(:whole AS text) AS jsonb) AS text)
    """
    contained, stored = (await session.execute(text(query), {"whole": whole, "part": part})).one()
    return contained, stored


def contains_by_index(whole: Any, part: Any) -> bool:
    """Return what `contains` does when there are too many pairs to try."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonb_contains, "MAX_QUICK_STEPS", 0)
        return contains(whole, part)


@given(PAIRS)
@limit_examples(200)
async def test_containment_of_random_documents_equals_that_of_the_database(
    database: Database, pair: tuple[Any, list[Any]]
) -> None:
    whole, parts = pair
    async with database.read() as session:
        for part in parts:
            expected, stored = await query_postgres(
                session, orjson.dumps(whole).decode(), orjson.dumps(part).decode()
            )
            for document in (whole, orjson.loads(stored)):
                assert contains(document, part) == expected
                assert contains_by_index(document, part) == expected


async def test_containment_in_edge_cases_equals_that_of_the_database(database: Database) -> None:
    cases = [
        ("[1, 2, [1, 3]]", "[1, 3]", False),
        ("[1, 2, [1, 3]]", "[[1, 3]]", True),
        ("[1, 2]", "[2, 1, 1, 2, 2]", True),
        ("[[1, 2]]", "[[1], [2], [1, 2]]", True),
        ("[[1], [2]]", "[[1, 2]]", False),
        ("[1]", "1", True),
        ("[[1]]", "1", False),
        ("[[1]]", "[1]", False),
        ("[1]", "[[1]]", False),
        ("1", "[1]", False),
        ("1", "[]", False),
        ('{"a": [1]}', '{"a": 1}', False),
        ('[{"a": 1}]', '{"a": 1}', False),
        ("[null]", "null", True),
        ("[{}]", "[[]]", False),
        ('[{"a": 1}]', "[{}]", True),
        ("[[1]]", "[[]]", True),
        ("[[]]", "[[[]]]", False),
        ("{}", "[]", False),
        ("[]", "{}", False),
        ("[true]", "[1]", False),
        ('{"a": 0}', '{"a": false}', False),
        ("[1e0]", "[1.00]", True),
        ("[100]", "[1E2]", True),
        ("[-0.0]", "[0]", True),
        ("[9007199254740993]", "[9007199254740992.0]", False),
        ("[9.223372036854778e18]", "[9223372036854778000]", True),
        ("[9.223372036854778e18]", "[9223372036854777856]", False),
        ('["é"]', '["e\u0301"]', False),
        ('{"a": 1, "a": 2}', '{"a": 1}', False),
        ('{"b": {"a": 1}}', '{"a": 1}', False),
        ('{"b": {"a": 1}, "a": {"c": 1}}', '{"a": {"a": 1}}', False),
    ]
    async with database.read() as session:
        for whole, part, expected in cases:
            parsed = orjson.loads(whole), orjson.loads(part)
            assert (await query_postgres(session, whole, part))[0] is expected, (whole, part)
            assert contains(*parsed) is expected, (whole, part)
            assert contains_by_index(*parsed) is expected, (whole, part)
