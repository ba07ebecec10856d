"""The document cache: used documents are parsed once, whatever else is sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.api.schema import schema
from graph.execution import document_cache
from graph.execution.document_cache import Document, DocumentCache, compute_document_id
from graph.execution.request import GraphQLRequest

TRUSTED = "query Trusted { __typename }"


@pytest.fixture
def cache() -> DocumentCache:
    return DocumentCache(schema.graphql, [TRUSTED])


def make_document(number: int) -> str:
    return f"{{ __typename }} # {number}"


def get_document(cache: DocumentCache, text: str) -> Document:
    return cache.get_document(GraphQLRequest(query=text))


def test_a_document_is_parsed_once(cache: DocumentCache) -> None:
    assert (
        get_document(cache, make_document(1))
        is get_document(cache, make_document(1))
        is get_document(cache, make_document(1))
    )
    assert get_document(cache, make_document(1)) is not get_document(cache, make_document(2))


def test_a_flood_of_documents_evicts_no_used_one(cache: DocumentCache) -> None:
    used = [get_document(cache, make_document(number)) for _ in range(2) for number in range(10)][
        :10
    ]
    trusted = get_document(cache, TRUSTED)
    for number in range(100, 100 + 2 * document_cache.MAX_USED):
        get_document(cache, make_document(number))
    assert [get_document(cache, make_document(number)) for number in range(10)] == used
    assert all(get_document(cache, make_document(number)) is used[number] for number in range(10))
    assert get_document(cache, TRUSTED) is trusted


def test_the_most_recent_of_the_documents_used_twice_are_kept(cache: DocumentCache) -> None:
    trusted = get_document(cache, TRUSTED)
    documents = [
        get_document(cache, make_document(number // 2))
        for number in range(2 * document_cache.MAX_USED + 2)
    ]
    assert get_document(cache, make_document(1)) is documents[2]
    assert get_document(cache, make_document(0)) is not documents[0]
    assert get_document(cache, TRUSTED) is trusted


def test_a_large_document_is_not_cached(cache: DocumentCache) -> None:
    large = make_document(1).ljust(document_cache.MAX_KEPT_CHARACTERS + 1)
    assert get_document(cache, large) is not get_document(cache, large)


@given(numbers=st.lists(st.integers(0, 30), max_size=200))
def test_every_document_is_found_by_its_own_id(numbers: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document_cache, "MAX_USED", 3)
        patch.setattr(document_cache, "MAX_ON_PROBATION", 2)
        cache = DocumentCache(schema.graphql)
        for number in numbers:
            assert get_document(cache, make_document(number)).id == compute_document_id(
                make_document(number)
            )
