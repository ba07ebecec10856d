"""API keys as the API shows them, without their secrets."""

from datetime import datetime
from typing import Annotated, Self

import strawberry

from db.access import tokens
from db.core import tables
from db.core.pagination import Page
from graph.api.context import Info
from graph.api.enums import NodeRole, NodeType, Role
from graph.api.root_fields import declare
from graph.api.types import After, First, PageInfo, field, resolve_page_size
from graph.auth.permissions import ADMINS


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


@strawberry.type(description="A key in a page.")
class TokenEdge:
    cursor: str = field("Its place in the list.")
    node: Token = field("The key.")


@strawberry.type(description="A page of keys, newest first.")
class TokenConnection:
    edges: list[TokenEdge] = field("The entries with their cursors.")
    nodes: list[Token] = field("The entries alone.")
    page_info: PageInfo = field("Where the page lies.")

    @classmethod
    def from_page(cls, page: Page[tables.Token], after: str | None) -> Self:
        cursors = [tokens.TOKEN_KEYSET.encode_cursor(row.created_at, row.id) for row in page.rows]
        entries = [Token.from_row(row) for row in page.rows]
        edges = [TokenEdge(cursor=c, node=e) for c, e in zip(cursors, entries, strict=True)]
        return cls(edges=edges, nodes=entries, page_info=PageInfo.from_page(page, cursors, after))


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
    ) -> TokenConnection:
        async with info.context.services.database.read() as session:
            page = await tokens.list_tokens(
                session, first=resolve_page_size(first), after=after, include_ended=not standing
            )
        return TokenConnection.from_page(page, after)
