"""The dashboard's files ask for nothing foreign, and for nothing that the schema lacks."""

import re
from pathlib import Path

import pytest

from graph.api.schema import schema
from graph.execution.document_cache import DocumentCache
from graph.execution.request import GraphQLRequest
from graph.transport.dashboard import STATIC

FILES = STATIC / "dashboard"
DOCUMENTS = re.findall(r"\(`\n(.*?)`\);", (FILES / "documents.js").read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("file", sorted(FILES.iterdir()), ids=lambda file: file.name)
def test_nothing_is_fetched_from_elsewhere_and_no_markup_is_made_of_text(file: Path) -> None:
    text = file.read_text("utf-8")
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", text))
    assert addresses <= {
        "http://www.w3.org/2000/svg",
        "https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md",
    }
    assert not re.search(r"innerHTML|insertAdjacentHTML|\beval\b|\bon\w+=\"|localStorage", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda text: text.split()[1].partition("(")[0])
def test_what_it_asks_is_of_the_schema_and_within_its_bounds(document: str) -> None:
    assert len(DOCUMENTS) >= 10
    assert DocumentCache(schema.graphql).get_document(GraphQLRequest(query=document)).errors == []
