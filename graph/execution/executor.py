"""The executor of GraphQL operations, which completes long lists in turns with other work."""

from collections.abc import AsyncIterable, Iterable, Sequence
from itertools import count
from typing import Any

from graphql import GraphQLList, GraphQLOutputType, GraphQLResolveInfo
from graphql.execution.collect_fields import FieldDetailsList
from graphql.pyutils import AwaitableOrValue, Path, gather_with_cancel
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext

from db.core.turns import Steps, take_turns

MAX_ITEMS_AT_ONCE = 20
"""Items of a list that are completed without a pause."""

_ITEMS_TOGETHER = 100
"""Items of a long list that load from the database together."""


class TurnTakingExecutor(StrawberryGraphQLCoreExecutionContext):
    """graphql-core's executor, except that a long list does not hold the event loop."""

    def complete_list_value(  # noqa: PLR0917  # as graphql-core declares it
        self,
        return_type: GraphQLList[GraphQLOutputType],
        field_details_list: FieldDetailsList,
        info: GraphQLResolveInfo[Any],
        path: Path,
        result: AsyncIterable[Any] | Iterable[Any],
        position_context: Any,
    ) -> AwaitableOrValue[list[Any]]:
        if isinstance(result, Sequence) and len(result) > MAX_ITEMS_AT_ONCE:
            return self._complete_in_turns(
                return_type.of_type, field_details_list, info, path, result
            )
        return super().complete_list_value(
            return_type, field_details_list, info, path, result, position_context
        )

    async def _complete_in_turns(
        self,
        item_type: GraphQLOutputType,
        field_details_list: FieldDetailsList,
        info: GraphQLResolveInfo[Any],
        path: Path,
        items: Sequence[Any],
    ) -> list[Any]:
        completed: list[Any] = []
        awaitable: list[int] = []

        def complete(start: int) -> Steps[None]:
            for index, item in zip(count(start), items[start : start + _ITEMS_TOGETHER]):
                if self.complete_list_item_value(
                    item, completed, item_type, field_details_list, info, path.add_key(index), None
                ):
                    awaitable.append(index)
                yield

        try:
            for start in range(0, len(items), _ITEMS_TOGETHER):
                await take_turns(complete(start))
                together = [completed[index] for index in awaitable]
                indices = list(awaitable)
                awaitable.clear()
                for index, value in zip(indices, await gather_with_cancel(*together), strict=True):
                    completed[index] = value
        except BaseException:
            self.settle_in_background([completed[index] for index in awaitable])
            raise
        return completed
