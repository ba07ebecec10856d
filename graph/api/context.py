"""The context that a resolver receives."""

from dataclasses import dataclass

import strawberry

from db.core.identity import Caller
from graph.api.node_loader import NodeLoader
from graph.services import Services


@dataclass(frozen=True, slots=True)
class Context:
    """The context of one operation."""

    services: Services
    caller: Caller
    loader: NodeLoader


def create_context(services: Services, caller: Caller) -> Context:
    """Return the context for a new operation of this caller."""
    return Context(services, caller, NodeLoader(services.database))


Info = strawberry.Info[Context, None]
