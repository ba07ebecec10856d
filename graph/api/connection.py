"""Pages of lists as Relay connections, and the arguments that select a page."""

from collections.abc import Callable
from typing import Annotated, Any, Generic, Self, TypeVar

import strawberry

from db.core.pagination import Page
from db.core.turns import collect, take_turns
from graph.api.fields import field

EntryT = TypeVar("EntryT")
RowT = TypeVar("RowT")

First = Annotated[
    int | None, strawberry.argument(description="The maximum number of entries, 0 to 1,000.")
]
After = Annotated[
    str | None, strawberry.argument(description="The cursor after which the page begins.")
]
DEFAULT_PAGE_SIZE = 50


def resolve_page_size(first: int | None) -> int:
    """Return the requested page size, or the default size if it is null."""
    return DEFAULT_PAGE_SIZE if first is None else first


@strawberry.type(description="The position of a page in its list.")
class PageInfo:
    has_next_page: bool = field("Whether the list continues after this page.")
    has_previous_page: bool = field("Whether the page was requested with a cursor.")
    start_cursor: str | None = field("The cursor of the first entry; null if the page is empty.")
    end_cursor: str | None = field(
        "The cursor of the last entry, to pass as `after`; null if the page is empty."
    )


@strawberry.type(description="An entry of a list and its cursor.")
class Edge(Generic[EntryT]):
    cursor: str = field("The position of the entry in the list.")
    node: EntryT = field("The entry.")


@strawberry.type(description="A page of a list.")
class Connection(Generic[EntryT]):
    """A page of a list. Its name in the schema begins with the name of the entries' type."""

    edges: list[Edge[EntryT]] = field("The entries with their cursors.")
    nodes: list[EntryT] = field("The entries without their cursors.")
    page_info: PageInfo = field("The position of the page in the list.")

    @classmethod
    async def from_page(
        cls,
        page: Page[RowT] | None,
        after: str | None,
        show: Callable[[RowT], EntryT],
        encode_cursor: Callable[[RowT], str],
        **fields: Any,
    ) -> Self:
        """Return a page whose entries `show` makes of the rows; None stands for an empty page.

        `after` is the cursor with which the page was read, `encode_cursor` returns the cursor of a
        row, and `fields` are the fields that a subclass adds.
        """
        rows = [] if page is None else page.rows
        shown = await take_turns(collect((encode_cursor(row), show(row)) for row in rows))
        cursors, entries = [cursor for cursor, _ in shown], [entry for _, entry in shown]
        return cls(
            edges=[Edge(cursor=c, node=e) for c, e in zip(cursors, entries, strict=True)],
            nodes=entries,
            page_info=PageInfo(
                has_next_page=page is not None and page.has_next,
                has_previous_page=after is not None,
                start_cursor=cursors[0] if cursors else None,
                end_cursor=cursors[-1] if cursors else None,
            ),
            **fields,
        )
