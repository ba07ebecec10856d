"""Documents are parsed once while they are used, whatever else is sent meanwhile."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.api.schema import schema
from graph.execution import document_cache
from graph.execution.document_cache import Document, DocumentCache, compute_document_id
from graph.execution.request import GraphQLRequest

TRUSTED = "query Trusted { __typename }"


@pytest.fixture
def known() -> DocumentCache:
    return DocumentCache(schema.graphql, [TRUSTED])


def written(number: int) -> str:
    return f"{{ __typename }} # {number}"


def ask(known: DocumentCache, text: str) -> Document:
    return known.get_document(GraphQLRequest(query=text))


def test_a_document_is_parsed_once(known: DocumentCache) -> None:
    assert ask(known, written(1)) is ask(known, written(1)) is ask(known, written(1))
    assert ask(known, written(1)) is not ask(known, written(2))


def test_a_flood_of_documents_drives_out_none_that_is_in_use(known: DocumentCache) -> None:
    used = [ask(known, written(number)) for _ in range(2) for number in range(10)][:10]
    trusted = ask(known, TRUSTED)
    for number in range(100, 100 + 2 * document_cache.MAX_USED):
        ask(known, written(number))
    assert [ask(known, written(number)) for number in range(10)] == used
    assert all(ask(known, written(number)) is used[number] for number in range(10))
    assert ask(known, TRUSTED) is trusted


def test_of_documents_used_twice_the_last_are_kept(known: DocumentCache) -> None:
    trusted = ask(known, TRUSTED)
    asked = [ask(known, written(number // 2)) for number in range(2 * document_cache.MAX_USED + 2)]
    assert ask(known, written(1)) is asked[2]
    assert ask(known, written(0)) is not asked[0]
    assert ask(known, TRUSTED) is trusted


def test_a_large_document_is_not_kept(known: DocumentCache) -> None:
    large = written(1).ljust(document_cache.MAX_KEPT_CHARACTERS + 1)
    assert ask(known, large) is not ask(known, large)


@given(numbers=st.lists(st.integers(0, 30), max_size=200))
def test_whatever_is_kept_each_document_is_itself(numbers: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(document_cache, "MAX_USED", 3)
        patched.setattr(document_cache, "MAX_ON_PROBATION", 2)
        known = DocumentCache(schema.graphql)
        for number in numbers:
            assert ask(known, written(number)).id == compute_document_id(written(number))
