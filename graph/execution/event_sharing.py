"""What looks the same to several callers is executed and encoded once for all of them."""

import hashlib
import json
from asyncio import Task
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from graphql import (
    Executor,
    NamedTypeNode,
    NonNullTypeNode,
    VariableDefinitionNode,
    execute_subscription_event,
)

from db.core.identity import Identity
from graph.core.single_flight import Once
from graph.execution.compiled_output import Shape
from graph.execution.document_cache import Operation
from graph.execution.response import Answer, answer_of, executed
from graph.telemetry.metrics import OK

MAX_SHARED_BYTES = 32 * 1024 * 1024
"""Of answers that are kept because others may ask for them."""

_EVENT_BYTES = 2000  # about what the event and its task take, whatever was asked of it


@dataclass(frozen=True, slots=True)
class Told:
    """Holds on to the event, so that its identity is nobody else's."""

    event: object
    answer: Answer


class Telling:
    """How events look, each told once for all subscriptions to which it looks the same."""

    def __init__(self) -> None:
        self._told: Once[tuple[bytes, int], Told] = Once(
            MAX_SHARED_BYTES, weigh=lambda told: weight(told.answer) + _EVENT_BYTES
        )

    def tell(
        self, executor: "Executor[Any]", shape: Shape | None, looks: bytes, event: object
    ) -> Told | Task[Told]:
        """What others have been told already, or that needs nothing of the database, is at hand.

        `looks` are those of the subscription, `shape` is that of its events, if they have one.
        """
        key = looks, id(event)
        told = self._told.kept(key)
        if told is not None:
            return told
        if shape is not None:
            with suppress(Exception):
                told = Told(event, Answer.with_data(shape(event)))
                self._told.keep(key, told)
                return told
        return self._told.begin(key, partial(_executed, executor, event))


async def _executed(executor: "Executor[Any]", event: object) -> Told:
    of_event = executor.build_per_event_executor(event)
    result = await executed(of_event, partial(execute_subscription_event, of_event))
    return Told(event, answer_of(result))


def weight(answer: Answer) -> int:
    """Of one with errors too much to be kept: the next who asks may have more luck."""
    return len(answer.payload) if answer.outcome == OK else MAX_SHARED_BYTES + 1


def looks_of(
    operation: Operation,
    variables: Mapping[str, Any] | None,
    identity: Identity,
    *,
    alike: bool = False,
) -> bytes:
    """The same for all operations to which an event looks the same; `alike`: whoever asks.

    A revision says where a stream begins, never what an event looks like. Nothing is told to one
    caller that another with the same rights would not be told.
    """
    given = variables or {}
    shown = {
        name: given[name]
        for definition in operation.node.variable_definitions or ()
        if (name := definition.variable.name.value) in given
        and _type_name(definition) != "Revision"
    }
    holds = None if alike else [identity.role, *sorted(identity.nodes)]
    asked = [operation.document.id, operation.name, shown, holds]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()


def _type_name(definition: VariableDefinitionNode) -> str | None:
    kind = definition.type.type if isinstance(definition.type, NonNullTypeNode) else definition.type
    return kind.name.value if isinstance(kind, NamedTypeNode) else None
