"""The schema: the types put together, and its text for schema.graphql."""

import strawberry
from strawberry.schema.config import StrawberryConfig

from graph.documents import DocumentCache
from graph.metrics import OperationTimer
from graph.mutations import Mutation
from graph.queries import Query
from graph.scalars import SCALARS
from graph.subscriptions import Subscription

schema = strawberry.Schema(
    query=Query,
    mutation=Mutation,
    subscription=Subscription,
    extensions=[DocumentCache, OperationTimer],
    config=StrawberryConfig(scalar_map=dict(SCALARS)),
)
