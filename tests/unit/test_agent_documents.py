import json

import pytest
from gql import GraphQLRequest
from graphql import (
    GraphQLInputObjectType,
    GraphQLSchema,
    build_schema,
    coerce_input_value,
    validate,
)

from agent import documents
from agent.machine import observe_machine
from agent.metrics import Meter
from agent.runner import build_registration_input
from agent.settings import load_settings
from agent.trusted_documents import collect_documents
from tests.support.paths import ROOT

DOCUMENTS = [value for value in vars(documents).values() if isinstance(value, GraphQLRequest)]


@pytest.fixture(scope="module")
def schema() -> GraphQLSchema:
    return build_schema((ROOT / "schema.graphql").read_text())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_is_valid_in_the_schema(schema: GraphQLSchema, document: GraphQLRequest) -> None:
    assert validate(schema, document.document) == []


def test_the_registry_trusts_every_document_of_the_agent() -> None:
    """`make documents` updates the trusted documents."""
    trusted = json.loads((ROOT / "graph" / "execution" / "trusted_documents.json").read_text())
    assert trusted == collect_documents()
    assert len(trusted) == len(DOCUMENTS)


def test_registration_and_heartbeat_are_valid_inputs_of_the_schema(schema: GraphQLSchema) -> None:
    settings = load_settings({"role": "production-router", "labels": "a", "name": "A node"})
    registration = build_registration_input(settings, observe_machine(), "boot-2")
    registration |= {"nodeId": "node-1", "replacesBootId": "boot-1"}
    metrics = Meter().read()
    heartbeat = {"nodeId": "node-1", "bootId": "boot-2", "sequence": 1, "metrics": metrics}
    for name, value in (("RegisterNodeInput", registration), ("RecordHeartbeatInput", heartbeat)):
        kind = schema.get_type(name)
        assert isinstance(kind, GraphQLInputObjectType)
        coerce_input_value(value, kind)
