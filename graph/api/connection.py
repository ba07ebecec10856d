"""Pages of lists as Relay's connections, and the arguments that select a page."""

from collections.abc import Callable
from typing import Annotated, Any, Generic, Self, TypeVar

import strawberry

from db.core.pagination import Page
from graph.api.fields import field

EntryT = TypeVar("EntryT")
RowT = TypeVar("RowT")

First = Annotated[int | None, strawberry.argument(description="How many at most, 0 to 1,000.")]
After = Annotated[
    str | None, strawberry.argument(description="The cursor behind which the page begins.")
]
DEFAULT_PAGE_SIZE = 50


def resolve_page_size(first: int | None) -> int:
    """Return the size of a page, the default one for an explicit null."""
    return DEFAULT_PAGE_SIZE if first is None else first


@strawberry.type(description="Where a page lies in its list.")
class PageInfo:
    has_next_page: bool = field("Whether more follows.")
    has_previous_page: bool = field("Whether the page was asked for behind a cursor.")
    start_cursor: str | None = field("The cursor of the first entry; null on an empty page.")
    end_cursor: str | None = field("The cursor of the last entry, for `after`.")


@strawberry.type(description="An entry of a page and its cursor.")
class Edge(Generic[EntryT]):
    cursor: str = field("Its place in the list.")
    node: EntryT = field("The entry.")


@strawberry.type(description="A page of a list.")
class Connection(Generic[EntryT]):
    """A page; its name in the schema begins with the name of the entries' type."""

    edges: list[Edge[EntryT]] = field("The entries with their cursors.")
    nodes: list[EntryT] = field("The entries alone.")
    page_info: PageInfo = field("Where the page lies.")

    @classmethod
    def from_page(
        cls,
        page: Page[RowT] | None,
        after: str | None,
        show: Callable[[RowT], EntryT],
        encode_cursor: Callable[[RowT], str],
        **fields: Any,
    ) -> Self:
        """Return the page of rows as `show` turns them into entries; None is an empty page.

        `after` is the cursor behind which the page was read, `encode_cursor` makes the cursor of a
        row, and `fields` are those of a subclass.
        """
        rows = [] if page is None else page.rows
        cursors = [encode_cursor(row) for row in rows]
        entries = [show(row) for row in rows]
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
