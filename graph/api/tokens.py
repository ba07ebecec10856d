"""Tokens as API objects, the mutations that change them, and the tokens of enrolled nodes."""

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
from graph.api.field_declarations import declare
from graph.api.fields import ACTOR_DESCRIPTION, INPUT, field, optional
from graph.auth.permissions import ADMINS, AGENTS
from graph.core import validation

_KEY_DESCRIPTION = "The secret text of the token, an API key. It is shown only this once."
_LIFETIME_DESCRIPTION = "The token's lifetime in seconds, at most ten years."


@strawberry.type(description="A token or an enrolment token, without its secret.")
class Token:
    id: strawberry.ID = field("The ten characters after the prefix of the token.")
    name: str = field(
        "The name of the token's holder, who acts as token/NAME in logs and in the audit log. A"
        " node with the token of its enrolment acts as node/NODE_ID."
    )
    role: Role = field("The role that the token grants.")
    nodes: list[str] = field("The ids of the nodes that an agent's token may act for.")
    created_at: datetime = field("When the token was created.")
    created_by: str = field(f"Who created the token. {ACTOR_DESCRIPTION}")
    expires_at: datetime | None = field("When the token expires; null if never.")
    revoked_at: datetime | None = field("When the token was revoked; null if it was not.")
    last_used_at: datetime | None = field("When the token was last used, approximately.")
    uses_left: int | None = field("The number of nodes that an enrolment token may still register.")
    node_role: NodeRole | None = field(
        "The role that the nodes of an enrolment token, and of the tokens that it made, must have;"
        " null for any role."
    )
    node_type: NodeType | None = field(
        "The type that the nodes of an enrolment token, and of the tokens that it made, must have;"
        " null for any type."
    )
    labels: list[str] | None = field(
        "The only labels that the nodes of an enrolment token, and of the tokens that it made, may"
        " have; null for any labels."
    )

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


@strawberry.input(description="A token to create.")
class CreateTokenInput:
    role: Role = field("The role that the token grants.")
    name: str | None = optional(
        "The name of the token's holder in logs. If absent, its role and id."
    )
    nodes: list[str] | None = optional(
        "The ids of the nodes that the token may act for. Required for the role AGENT, not"
        " allowed for others."
    )
    expires_in_seconds: int | None = optional(
        f"{_LIFETIME_DESCRIPTION} If absent, it does not expire."
    )


@strawberry.input(description="An enrolment token to create.")
class CreateEnrolmentTokenInput:
    uses: int = field("The number of nodes that the token may register.")
    expires_in_seconds: int = field(_LIFETIME_DESCRIPTION)
    name: str | None = optional(
        "The name of the token's holder in logs. If absent, its role and id."
    )
    node_role: NodeRole | None = optional(
        "The role that nodes must have, for as long as they use the tokens that they receive. If"
        " absent, any role."
    )
    node_type: NodeType | None = optional(
        "The type that nodes must have, likewise. If absent, any type."
    )
    labels: list[str] | None = optional(
        "The only labels that nodes may have, likewise. If absent, any labels."
    )
    key_expires_in_seconds: int | None = optional(
        "The lifetime in seconds of the token that each node receives. If absent, 90 days."
    )


@strawberry.input(description="A token to rotate.")
class RotateTokenInput:
    id: strawberry.ID = field("The id of the token.")
    overlap_seconds: int = strawberry.field(
        description="The time in seconds for which the old token stays valid.", default=3600
    )


@strawberry.input(description="Tokens to revoke.")
class RevokeTokenInput:
    id: strawberry.ID = field(
        "The id of a token, or a name, which stands for all tokens of this name."
    )


@strawberry.type(description="A token that was created.")
class CreateTokenPayload:
    key: str = field(_KEY_DESCRIPTION)
    token: Token = field("The token without its secret.")

    @classmethod
    def from_issued(cls, issued: IssuedToken) -> Self:
        return cls(key=issued.text, token=Token.from_row(issued.token))


@strawberry.type(description="Tokens that were revoked.")
class RevokeTokenPayload:
    tokens: list[Token] = field("The revoked tokens.")


@strawberry.type(description="The new token of a node's agent.")
class RotateNodeKeyPayload:
    key: str = field(_KEY_DESCRIPTION)
    key_expires_at: datetime | None = field("When the new token expires; null if never.")


@strawberry.type
class TokenQueries:
    @strawberry.field(**declare(ADMINS, "The tokens, newest first."))
    async def tokens(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        *,
        standing: Annotated[
            bool,
            strawberry.argument(
                description="Whether to return only tokens that have neither expired nor been"
                " revoked."
            ),
        ] = True,
    ) -> Connection[Token]:
        async with info.context.services.database.read() as session:
            page = await tokens.list_tokens(
                session, first=resolve_page_size(first), after=after, include_ended=not standing
            )
        return await Connection.from_page(
            page,
            after,
            Token.from_row,
            lambda row: tokens.TOKEN_KEYSET.encode_cursor(row.created_at, row.id),
        )


@strawberry.type
class TokenMutations:
    @strawberry.mutation(
        **declare(ADMINS, "Creates a token."), extensions=[AuditedField("token.create", "name")]
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
            "Creates an enrolment token. Each node that registers with it receives a token of its"
            " own.",
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
        **declare(
            ADMINS, "Creates a token that replaces another one, which stays valid for an overlap."
        ),
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
        **declare(ADMINS, "Revokes tokens immediately."),
        extensions=[AuditedField("token.revoke", "id")],
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
            "Creates a token that replaces the caller's own. The old token stays valid for a"
            " while, so that the agent can retry if the response is lost.",
        ),
        extensions=[AuditedField("token.rotate")],
    )
    async def rotate_node_key(self, info: Info) -> RotateNodeKeyPayload:
        caller = info.context.caller
        if caller.identity.role is not Role.AGENT or caller.identity.token_id is None:
            raise Forbidden(f"{caller.name} must authenticate with an agent's token")
        info.context.services.caller_limits.charge_rotation(caller)
        overlap = timedelta(seconds=info.context.services.settings.node_key_overlap_seconds)
        async with info.context.services.database.write() as session:
            issued = await token_changes.rotate_token(
                session, caller.identity.token_id, overlap=overlap, caller=caller
            )
        return RotateNodeKeyPayload(key=issued.text, key_expires_at=issued.token.expires_at)


async def issue_node_token(
    session: AsyncSession, node: tables.Node, caller: Caller
) -> tuple[str | None, datetime | None]:
    """Return the token that an enrolment issues for a registered node, and when the token expires.

    The text is None unless the caller has an enrolment token, and the expiry is None unless the
    caller has a token of this kind or an agent's token.

    Raises: Forbidden: the enrolment token does not admit the node, or the node has a token.
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
