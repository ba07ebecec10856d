"""The schema as a promise: written down, described throughout, and true to the contract."""

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
WRITTEN = (HERE.parent.parent / "schema.graphql").read_text(encoding="utf-8")
OURS = build_schema(WRITTEN)
CONTRACT = build_schema((HERE / "contract.graphql").read_text(encoding="utf-8"))


def test_schema_graphql_is_what_the_registry_serves() -> None:
    assert schema.as_str() + "\n" == WRITTEN, "run `make schema`"


def test_the_contract_is_kept() -> None:
    assert find_breaking_changes(CONTRACT, OURS) == []


def described(named: GraphQLNamedType) -> dict[str, str | None]:
    found = {named.name: named.description}
    if isinstance(named, GraphQLObjectType | GraphQLInterfaceType):
        for name, field in named.fields.items():
            found[f"{named.name}.{name}"] = field.description
            for argument, definition in field.args.items():
                found[f"{named.name}.{name}({argument})"] = definition.description
    if isinstance(named, GraphQLInputObjectType):
        found |= {f"{named.name}.{n}": field.description for n, field in named.fields.items()}
    if isinstance(named, GraphQLEnumType):
        found |= {f"{named.name}.{n}": value.description for n, value in named.values.items()}
    return found


@pytest.mark.parametrize(
    "named",
    [
        named
        for name, named in OURS.type_map.items()
        if not name.startswith("__") and not is_specified_scalar_type(named)
    ],
    ids=str,
)
def test_everything_has_a_description(named: GraphQLNamedType) -> None:
    assert [name for name, description in described(named).items() if not description] == []


@pytest.mark.parametrize("name", ["DateTime", "JSON", "IPAddress", "Revision"])
def test_scalars_are_described_as_the_contract_has_it(name: str) -> None:
    assert OURS.type_map[name].description == CONTRACT.type_map[name].description
