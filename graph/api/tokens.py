"""API keys as the API shows, makes, rotates and revokes them; and the key of a node's own agent."""

from datetime import datetime, timedelta
from typing import Annotated, Self

import strawberry
from sqlalchemy.ext.asyncio import AsyncSession

from db.access import enrolment, token_changes, tokens
from db.access.token_changes import IssuedToken
from db.core import tables
from db.core.errors import Forbidden
from db.core.identity import Caller
from graph.api.audited_field import AuditedField
from graph.api.connection import After, Connection, First, resolve_page_size
from graph.api.context import Info
from graph.api.enums import NodeRole, NodeType, Role
from graph.api.fields import INPUT, field, optional
from graph.api.root_fields import declare
from graph.auth.permissions import ADMINS, AGENTS
from graph.core import validation

_KEY_DESCRIPTION = "The key itself. It is shown this once."
_LIFETIME_DESCRIPTION = "How long it stands, at most ten years."


@strawberry.type(description="An API key or an enrolment key, without its secret.")
class Token:
    id: strawberry.ID = field("The ten characters behind the key's prefix.")
    name: str = field("What the logs call who uses it.")
    role: Role = field("What it may do.")
    nodes: list[str] = field("The ids of the nodes that an agent's key speaks for.")
    created_at: datetime = field("When it was made.")
    created_by: str = field("Who made it.")
    expires_at: datetime | None = field("When it ends by itself; null: never.")
    revoked_at: datetime | None = field("When it was ended before its time.")
    last_used_at: datetime | None = field("When it was last used, about.")
    uses_left: int | None = field("How many nodes an enrolment key may still let in.")
    node_role: NodeRole | None = field("That they must have; null: any.")
    node_type: NodeType | None = field("That they must have; null: any.")
    labels: list[str] | None = field("That they may have; null: any.")

    @classmethod
    def from_row(cls, token: tables.Token) -> Self:
        return cls(
            id=strawberry.ID(token.public_id),
            name=token.name,
            role=token.role,
            nodes=token.nodes,
            created_at=token.created_at,
            created_by=token.created_by,
            expires_at=token.expires_at,
            revoked_at=token.revoked_at,
            last_used_at=token.last_used_at,
            uses_left=token.uses_left,
            node_role=token.node_role,
            node_type=token.node_type,
            labels=token.labels,
        )


@strawberry.input(description="An API key to make.")
class CreateTokenInput:
    role: Role = field("What it may do.")
    name: str | None = optional("What the logs call who uses it. Absent: its role and id.")
    nodes: list[str] | None = optional("The ids that it speaks for: of an agent, and only then.")
    expires_in_seconds: int | None = optional(
        f"{_LIFETIME_DESCRIPTION} Absent: until it is revoked."
    )


@strawberry.input(description="An enrolment key to make.")
class CreateEnrolmentTokenInput:
    uses: int = field("How many nodes it lets in.")
    expires_in_seconds: int = field(_LIFETIME_DESCRIPTION)
    name: str | None = optional("What the logs call who uses it. Absent: its role and id.")
    node_role: NodeRole | None = optional("That the nodes must have. Absent: any.")
    node_type: NodeType | None = optional("That the nodes must have. Absent: any.")
    labels: list[str] | None = optional("That the nodes may have, and no others. Absent: any.")
    key_expires_in_seconds: int | None = optional(
        "How long the key of each node stands. Absent: 90 days."
    )


@strawberry.input(description="A key to rotate.")
class RotateTokenInput:
    id: strawberry.ID = field("The key's id.")
    overlap_seconds: int = strawberry.field(
        description="How long the old key stands beside the new one.", default=3600
    )


@strawberry.input(description="Keys to end.")
class RevokeTokenInput:
    id: strawberry.ID = field("A key's id; or a name: all keys that have it.")


@strawberry.type(description="A key that was made.")
class CreateTokenPayload:
    key: str = field(_KEY_DESCRIPTION)
    token: Token = field("What else there is to know of it.")

    @classmethod
    def from_issued(cls, issued: IssuedToken) -> Self:
        return cls(key=issued.text, token=Token.from_row(issued.token))


@strawberry.type(description="Keys that have ended.")
class RevokeTokenPayload:
    tokens: list[Token] = field("The keys.")


@strawberry.type(description="The new key of an agent's node.")
class RotateNodeKeyPayload:
    key: str = field(_KEY_DESCRIPTION)
    key_expires_at: datetime | None = field("When it ends.")


@strawberry.type
class TokenQueries:
    @strawberry.field(**declare(ADMINS, "The keys, newest first."))
    async def tokens(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        *,
        standing: Annotated[
            bool, strawberry.argument(description="Only those that have not ended.")
        ] = True,
    ) -> Connection[Token]:
        async with info.context.services.database.read() as session:
            page = await tokens.list_tokens(
                session, first=resolve_page_size(first), after=after, include_ended=not standing
            )
        return Connection.from_page(
            page,
            after,
            Token.from_row,
            lambda row: tokens.TOKEN_KEYSET.encode_cursor(row.created_at, row.id),
        )


@strawberry.type
class TokenMutations:
    @strawberry.mutation(
        **declare(ADMINS, "Makes an API key."), extensions=[AuditedField("token.create", "name")]
    )
    async def create_token(
        self,
        info: Info,
        input: Annotated[CreateTokenInput, INPUT],
    ) -> CreateTokenPayload:
        nodes = [
            validation.check_identifier(f"input.nodes[{i}]", node)
            for i, node in enumerate(input.nodes or [])
        ]
        lifetime = input.expires_in_seconds
        async with info.context.services.database.write() as session:
            issued = await token_changes.create_token(
                session,
                role=input.role,
                name=validation.check_optional(
                    validation.check_token_name, "input.name", input.name
                ),
                nodes=list(dict.fromkeys(nodes)),
                lifetime=validation.check_optional(
                    validation.check_lifetime, "input.expiresInSeconds", lifetime
                ),
                caller=info.context.caller,
            )
        return CreateTokenPayload.from_issued(issued)

    @strawberry.mutation(
        **declare(
            ADMINS,
            "Makes an enrolment key: each node that is registered with it gets a key of its own.",
        ),
        extensions=[AuditedField("token.create", "name")],
    )
    async def create_enrolment_token(
        self,
        info: Info,
        input: Annotated[CreateEnrolmentTokenInput, INPUT],
    ) -> CreateTokenPayload:
        lifetime = validation.check_lifetime("input.expiresInSeconds", input.expires_in_seconds)
        node_token_lifetime = validation.check_optional(
            validation.check_lifetime, "input.keyExpiresInSeconds", input.key_expires_in_seconds
        )
        async with info.context.services.database.write() as session:
            issued = await enrolment.create_enrolment_token(
                session,
                uses=validation.check_count("input.uses", input.uses, maximum=validation.MAX_USES),
                valid_for=lifetime,
                name=validation.check_optional(
                    validation.check_token_name, "input.name", input.name
                ),
                node_role=input.node_role,
                node_type=input.node_type,
                labels=validation.check_optional(
                    validation.check_labels, "input.labels", input.labels
                ),
                token_lifetime=node_token_lifetime or enrolment.TOKEN_LIFETIME,
                caller=info.context.caller,
            )
        return CreateTokenPayload.from_issued(issued)

    @strawberry.mutation(
        **declare(ADMINS, "Makes a key that takes the place of another, with an overlap."),
        extensions=[AuditedField("token.rotate", "id")],
    )
    async def rotate_token(
        self,
        info: Info,
        input: Annotated[RotateTokenInput, INPUT],
    ) -> CreateTokenPayload:
        public_id = validation.check_search_value("input.id", input.id)
        overlap = validation.check_lifetime(
            "input.overlapSeconds", input.overlap_seconds, minimum=0
        )
        async with info.context.services.database.write() as session:
            old = await tokens.get_token(session, public_id)
            issued = await token_changes.rotate_token(
                session, old.id, overlap=overlap, caller=info.context.caller
            )
        return CreateTokenPayload.from_issued(issued)

    @strawberry.mutation(
        **declare(ADMINS, "Ends keys at once."), extensions=[AuditedField("token.revoke", "id")]
    )
    async def revoke_token(
        self,
        info: Info,
        input: Annotated[RevokeTokenInput, INPUT],
    ) -> RevokeTokenPayload:
        id_or_name = validation.check_search_value("input.id", input.id)
        async with info.context.services.database.write() as session:
            revoked = await token_changes.revoke_tokens(
                session, id_or_name, caller=info.context.caller
            )
        return RevokeTokenPayload(tokens=[Token.from_row(token) for token in revoked])

    @strawberry.mutation(
        **declare(
            AGENTS,
            "Makes a key that takes the place of the one that asks. The old one stands beside it"
            " for a while, so that nothing is lost with the answer.",
        ),
        extensions=[AuditedField("token.rotate")],
    )
    async def rotate_node_key(self, info: Info) -> RotateNodeKeyPayload:
        caller = info.context.caller
        if caller.identity.role is not Role.AGENT or caller.identity.token_id is None:
            raise Forbidden(f"{caller.name} is not known by an agent's key")
        overlap = timedelta(seconds=info.context.services.settings.node_key_overlap_seconds)
        async with info.context.services.database.write() as session:
            issued = await token_changes.rotate_token(
                session, caller.identity.token_id, overlap=overlap, caller=caller
            )
        return RotateNodeKeyPayload(key=issued.text, key_expires_at=issued.token.expires_at)


async def issue_node_token(
    session: AsyncSession, node: tables.Node, caller: Caller
) -> tuple[str | None, datetime | None]:
    """The key that a registration by an enrolment key brings; and when that, or the key that an
    agent registered with, ends. Raises Forbidden.
    """
    identity = caller.identity
    if identity.token_id is None:
        return None, None
    match identity.role:
        case Role.ENROLMENT:
            issued = await enrolment.enrol_node(session, identity.token_id, node, caller=caller)
            return issued.text, issued.token.expires_at
        case Role.AGENT:
            return None, await tokens.get_expiry(session, identity.token_id)
    return None, None
