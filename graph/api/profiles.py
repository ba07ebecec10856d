"""The profiles of nodes and of roles: the mutations that write them, their inputs and payloads."""

from datetime import datetime
from typing import Annotated, Self

import strawberry

from db.core import tables
from db.core.errors import BadInput
from db.registry import profile_changes
from graph.api.audited_field import AuditedField
from graph.api.context import Info
from graph.api.enums import NodeRole, NodeType, ProfileType
from graph.api.field_declarations import declare
from graph.api.fields import INPUT, field, optional
from graph.api.profile_schema import parse_content
from graph.api.scalars import JSON
from graph.api.types import NodeProfile
from graph.auth.permissions import OPERATORS
from graph.core import validation

_EXPECTED_VERSION = (
    "The version that this write replaces, or 0 if the profile must not exist. If it does not"
    " match, the error is VERSION_CONFLICT. If absent, any version."
)


@strawberry.type(description="A profile that applies to every node of a role and type.")
class RoleProfile:
    id: strawberry.ID = field("The id of the profile.")
    role: NodeRole = field("The role of the nodes.")
    type: NodeType = field("The type of the nodes.")
    name: str = field("The name of the profile, unique within the role and type.")
    profile_type: ProfileType = field("The kind of thing that the profile configures.")
    config: JSON = field("The settings as they were written.")
    enabled: bool = field("Whether the profile is in use.")
    version: int = field(
        "A number that increases by one with each write. Send it back as expectedVersion."
    )
    created_at: datetime = field("When the profile was first written.")
    updated_at: datetime = field("When the profile was last written.")

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


@strawberry.input(description="A profile of a node to create or replace.")
class SetNodeProfileInput:
    node_id: str = field("The id of the node.")
    name: str = field("The name of the profile, unique within the node.")
    type: ProfileType = field("The kind of thing that the profile configures.")
    config: JSON = field("The settings: a JSON object of at most 64 KiB.")
    enabled: bool = strawberry.field(description="Whether the profile is in use.", default=True)
    expected_version: int | None = optional(_EXPECTED_VERSION)


@strawberry.input(description="A profile of a node to delete.")
class DeleteNodeProfileInput:
    node_id: str = field("The id of the node.")
    name: str = field("The name of the profile.")
    expected_version: int | None = optional(_EXPECTED_VERSION)


@strawberry.input(description="A profile of a role and type to create or replace.")
class SetRoleProfileInput:
    role: NodeRole = field("The role of the nodes to which the profile applies.")
    type: NodeType = field("The type of the nodes to which the profile applies.")
    name: str = field("The name of the profile, unique within the role and type.")
    profile_type: ProfileType = field("The kind of thing that the profile configures.")
    config: JSON = field("The settings: a JSON object of at most 64 KiB.")
    enabled: bool = strawberry.field(description="Whether the profile is in use.", default=True)
    expected_version: int | None = optional(_EXPECTED_VERSION)


@strawberry.input(description="A profile of a role and type to delete.")
class DeleteRoleProfileInput:
    role: NodeRole = field("The role of the nodes to which the profile applies.")
    type: NodeType = field("The type of the nodes to which the profile applies.")
    name: str = field("The name of the profile.")
    expected_version: int | None = optional(_EXPECTED_VERSION)


@strawberry.type(description="A profile of a node that was written.")
class SetNodeProfilePayload:
    profile: NodeProfile = field("The profile after the write.")


@strawberry.type(description="A profile of a role and type that was written.")
class SetRoleProfilePayload:
    profile: RoleProfile = field("The profile after the write.")


@strawberry.type(description="A profile of a node that was deleted.")
class DeleteNodeProfilePayload:
    name: str = field("The name of the deleted profile.")


@strawberry.type(description="A profile of a role and type that was deleted.")
class DeleteRoleProfilePayload:
    name: str = field("The name of the deleted profile.")


@strawberry.type
class ProfileMutations:
    @strawberry.mutation(
        **declare(
            OPERATORS,
            "Creates or replaces a profile of a node. A VERSION_CONFLICT contains the profile's"
            " current version.",
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
                session,
                node_id,
                content,
                expected_version=expected_version,
                caller=info.context.caller,
            )
        return SetNodeProfilePayload(profile=NodeProfile.from_row(profile))

    @strawberry.mutation(
        **declare(
            OPERATORS,
            "Deletes a profile of a node. A profile of the same name that its role has still"
            " applies to it.",
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
                session,
                node_id,
                name,
                expected_version=expected_version,
                caller=info.context.caller,
            )
        return DeleteNodeProfilePayload(name=name)

    @strawberry.mutation(
        **declare(
            OPERATORS,
            "Creates or replaces a profile of a role and type. A VERSION_CONFLICT contains the"
            " profile's current version.",
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
                caller=info.context.caller,
            )
        return SetRoleProfilePayload(profile=RoleProfile.from_row(profile))

    @strawberry.mutation(
        **declare(
            OPERATORS,
            "Deletes a profile of a role and type. The nodes keep their own profiles.",
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
                caller=info.context.caller,
            )
        return DeleteRoleProfilePayload(name=name)


def _check_expected_version(expected_version: int | None) -> int | None:
    if expected_version is not None and expected_version < 0:
        raise BadInput("input.expectedVersion", "must not be negative")
    return expected_version
