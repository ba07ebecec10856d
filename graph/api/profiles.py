"""Profiles of nodes and of roles: the mutations that write them, with what these take and give."""

from datetime import datetime
from typing import Annotated, Self

import strawberry

from db.core import tables
from db.core.errors import BadInput
from db.registry import profile_changes
from graph.api.audited_field import AuditedField
from graph.api.context import Info
from graph.api.enums import NodeRole, NodeType, ProfileType
from graph.api.fields import INPUT, field, optional
from graph.api.profile_schema import parse_content
from graph.api.root_fields import declare
from graph.api.scalars import JSON
from graph.api.types import NodeProfile
from graph.auth.permissions import OPERATORS
from graph.core import validation

_EXPECTED_VERSION = (
    "The version that this one replaces, 0 for none. Any other is a VERSION_CONFLICT. Absent: any."
)


@strawberry.type(description="What every node of a role and type starts from.")
class RoleProfile:
    id: strawberry.ID = field("The profile's own id.")
    role: NodeRole = field("The role of the nodes.")
    type: NodeType = field("The type of the nodes.")
    name: str = field("Unique within the role and type.")
    profile_type: ProfileType = field("What it sets up.")
    config: JSON = field("Its settings, as given.")
    enabled: bool = field("Whether it is in use.")
    version: int = field("Grows by one with each write; send it back as expectedVersion.")
    created_at: datetime = field("When it was first written.")
    updated_at: datetime = field("When it was last written.")

    @classmethod
    def from_row(cls, row: tables.RoleProfile) -> Self:
        return cls(
            id=strawberry.ID(str(row.id)),
            role=row.node_role,
            type=row.node_type,
            name=row.profile_name,
            profile_type=row.profile_type,
            config=JSON(row.config),
            enabled=row.enabled,
            version=row.version,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


@strawberry.input(description="A profile of a node, made or replaced.")
class SetNodeProfileInput:
    node_id: str = field("The node.")
    name: str = field("Unique within the node.")
    type: ProfileType = field("What it sets up.")
    config: JSON = field("Its settings: a JSON object of at most 64 KiB.")
    enabled: bool = strawberry.field(description="Whether it is in use.", default=True)
    expected_version: int | None = optional(_EXPECTED_VERSION)


@strawberry.input(description="A profile of a node that is to go.")
class DeleteNodeProfileInput:
    node_id: str = field("The node.")
    name: str = field("The profile.")
    expected_version: int | None = optional(_EXPECTED_VERSION)


@strawberry.input(description="A profile of a role and type, made or replaced.")
class SetRoleProfileInput:
    role: NodeRole = field("The role of the nodes that start from it.")
    type: NodeType = field("The type of these nodes.")
    name: str = field("Unique within the role and type.")
    profile_type: ProfileType = field("What it sets up.")
    config: JSON = field("Its settings: a JSON object of at most 64 KiB.")
    enabled: bool = strawberry.field(description="Whether it is in use.", default=True)
    expected_version: int | None = optional(_EXPECTED_VERSION)


@strawberry.input(description="A profile of a role and type that is to go.")
class DeleteRoleProfileInput:
    role: NodeRole = field("The role of the nodes that start from it.")
    type: NodeType = field("The type of these nodes.")
    name: str = field("The profile.")
    expected_version: int | None = optional(_EXPECTED_VERSION)


@strawberry.type(description="A profile of a node as written.")
class SetNodeProfilePayload:
    profile: NodeProfile = field("The profile as it stands now.")


@strawberry.type(description="A profile of a role as written.")
class SetRoleProfilePayload:
    profile: RoleProfile = field("The profile as it stands now.")


@strawberry.type(description="A profile of a node that is gone.")
class DeleteNodeProfilePayload:
    name: str = field("The name that it had.")


@strawberry.type(description="A profile of a role that is gone.")
class DeleteRoleProfilePayload:
    name: str = field("The name that it had.")


@strawberry.type
class ProfileMutations:
    @strawberry.mutation(
        **declare(
            OPERATORS,
            "Makes a node's own profile, or replaces it. VERSION_CONFLICT tells the"
            " version that it has.",
        ),
        extensions=[AuditedField("profile.set", "node_id", "name")],
    )
    async def set_node_profile(
        self,
        info: Info,
        input: Annotated[SetNodeProfileInput, INPUT],
    ) -> SetNodeProfilePayload:
        node_id = validation.check_search_value("input.nodeId", input.node_id)
        content = parse_content(
            "input", input.name, input.type, input.config, enabled=input.enabled
        )
        expected_version = _check_expected_version(input.expected_version)
        async with info.context.services.database.write() as session:
            profile = await profile_changes.set_node_profile(
                session, node_id, content, expected_version=expected_version, by=info.context.caller
            )
        return SetNodeProfilePayload(profile=NodeProfile.from_row(profile))

    @strawberry.mutation(
        **declare(
            OPERATORS,
            "Takes a node's own profile away; its role's, if there is one, is left to it.",
        ),
        extensions=[AuditedField("profile.delete", "node_id", "name")],
    )
    async def delete_node_profile(
        self,
        info: Info,
        input: Annotated[DeleteNodeProfileInput, INPUT],
    ) -> DeleteNodeProfilePayload:
        node_id = validation.check_search_value("input.nodeId", input.node_id)
        name = validation.check_search_value("input.name", input.name)
        expected_version = _check_expected_version(input.expected_version)
        async with info.context.services.database.write() as session:
            await profile_changes.delete_node_profile(
                session, node_id, name, expected_version=expected_version, by=info.context.caller
            )
        return DeleteNodeProfilePayload(name=name)

    @strawberry.mutation(
        **declare(
            OPERATORS,
            "Makes a profile of a role and type, or replaces it. VERSION_CONFLICT tells the"
            " version that it has.",
        ),
        extensions=[AuditedField("profile.set", "role", "type", "name")],
    )
    async def set_role_profile(
        self,
        info: Info,
        input: Annotated[SetRoleProfileInput, INPUT],
    ) -> SetRoleProfilePayload:
        content = parse_content(
            "input", input.name, input.profile_type, input.config, enabled=input.enabled
        )
        expected_version = _check_expected_version(input.expected_version)
        async with info.context.services.database.write() as session:
            profile = await profile_changes.set_role_profile(
                session,
                input.role,
                input.type,
                content,
                expected_version=expected_version,
                by=info.context.caller,
            )
        return SetRoleProfilePayload(profile=RoleProfile.from_row(profile))

    @strawberry.mutation(
        **declare(
            OPERATORS,
            "Takes a profile of a role and type away; what nodes have of their own stays.",
        ),
        extensions=[AuditedField("profile.delete", "role", "type", "name")],
    )
    async def delete_role_profile(
        self,
        info: Info,
        input: Annotated[DeleteRoleProfileInput, INPUT],
    ) -> DeleteRoleProfilePayload:
        name = validation.check_search_value("input.name", input.name)
        expected_version = _check_expected_version(input.expected_version)
        async with info.context.services.database.write() as session:
            await profile_changes.delete_role_profile(
                session,
                input.role,
                input.type,
                name,
                expected_version=expected_version,
                by=info.context.caller,
            )
        return DeleteRoleProfilePayload(name=name)


def _check_expected_version(expected_version: int | None) -> int | None:
    if expected_version is not None and expected_version < 0:
        raise BadInput("input.expectedVersion", "must not be negative")
    return expected_version
