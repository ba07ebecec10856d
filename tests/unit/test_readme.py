"""README is up to date with the settings, the schema and the commands."""

import re

import pytest

from graph.api.schema import schema
from graph.core.settings import Settings
from graph.execution.document_cache import DocumentCache
from graph.execution.request import GraphQLRequest
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_the_table(name: str) -> None:
    table = README.split("## Configuration")[1].split("\n## ")[0]
    names = {
        word.strip()
        for row in table.splitlines()
        if row.startswith("|")
        for word in row.split("|")[1].replace(", or", ",").split(",")
    }
    assert name.upper() in names


@pytest.mark.parametrize("document", re.findall(r"```graphql\n(.*?)```", README, re.DOTALL))
def test_every_operation_is_valid_in_the_schema(document: str) -> None:
    assert DocumentCache(schema.graphql).get_document(GraphQLRequest(query=document)).errors == []


def test_readme_opens_with_the_two_commands() -> None:
    opening = README.split("## ")[0]
    assert "make run" in opening
    assert "make test" in opening
