"""The schema: up to date in schema.graphql, described everywhere, compatible with the contract."""

from pathlib import Path

import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLNamedType,
    GraphQLObjectType,
    build_schema,
    find_breaking_changes,
    is_specified_scalar_type,
)

from graph.api.schema import schema

HERE = Path(__file__).parent
SCHEMA_FILE = (HERE.parent.parent / "schema.graphql").read_text(encoding="utf-8")
SCHEMA = build_schema(SCHEMA_FILE)
CONTRACT = build_schema((HERE / "contract.graphql").read_text(encoding="utf-8"))


def test_schema_graphql_is_what_the_registry_serves() -> None:
    assert schema.as_str() + "\n" == SCHEMA_FILE, "run `make schema`"


def test_the_schema_is_compatible_with_the_contract() -> None:
    assert find_breaking_changes(CONTRACT, SCHEMA) == []


def list_descriptions(named_type: GraphQLNamedType) -> dict[str, str | None]:
    descriptions = {named_type.name: named_type.description}
    if isinstance(named_type, GraphQLObjectType | GraphQLInterfaceType):
        for name, field in named_type.fields.items():
            descriptions[f"{named_type.name}.{name}"] = field.description
            for argument, definition in field.args.items():
                descriptions[f"{named_type.name}.{name}({argument})"] = definition.description
    if isinstance(named_type, GraphQLInputObjectType):
        descriptions |= {
            f"{named_type.name}.{n}": field.description for n, field in named_type.fields.items()
        }
    if isinstance(named_type, GraphQLEnumType):
        descriptions |= {
            f"{named_type.name}.{n}": value.description for n, value in named_type.values.items()
        }
    return descriptions


@pytest.mark.parametrize(
    "named_type",
    [
        named_type
        for name, named_type in SCHEMA.type_map.items()
        if not name.startswith("__") and not is_specified_scalar_type(named_type)
    ],
    ids=str,
)
def test_every_type_field_and_value_has_a_description(named_type: GraphQLNamedType) -> None:
    assert [
        name for name, description in list_descriptions(named_type).items() if not description
    ] == []


@pytest.mark.parametrize("name", ["DateTime", "JSON", "IPAddress", "Revision"])
def test_scalars_have_the_descriptions_of_the_contract(name: str) -> None:
    assert SCHEMA.type_map[name].description == CONTRACT.type_map[name].description
