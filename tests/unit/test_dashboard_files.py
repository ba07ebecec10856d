"""The dashboard's files load nothing from other hosts, and their documents fit the schema."""

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
def test_a_file_loads_nothing_from_other_hosts_and_builds_no_markup_from_text(file: Path) -> None:
    text = file.read_text("utf-8")
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", text))
    assert addresses <= {
        "http://www.w3.org/2000/svg",
        "https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md",
    }
    assert not re.search(r"innerHTML|insertAdjacentHTML|\beval\b|\bon\w+=\"|localStorage", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda text: text.split()[1].partition("(")[0])
def test_a_document_fits_the_schema_and_its_limits(document: str) -> None:
    assert len(DOCUMENTS) >= 10
    assert DocumentCache(schema.graphql).get_document(GraphQLRequest(query=document)).errors == []
