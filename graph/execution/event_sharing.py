"""Events that look the same to several subscriptions are executed and encoded once for all."""

import hashlib
import json
from asyncio import Task
from collections.abc import Callable, Mapping
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
from graph.core.single_flight import SingleFlight
from graph.execution.compiled_output import Shape
from graph.execution.document_cache import Operation
from graph.execution.executor import MAX_ITEMS_AT_ONCE
from graph.execution.response import Response, run_executor
from graph.live.stream_events import CandidatesSnapshot
from graph.telemetry.metrics import OK

MAX_SHARED_BYTES = 32 * 1024 * 1024
"""Of encoded responses that are kept for others who may ask for them."""

_EVENT_BYTES = 2000  # about what an event and its task take, whatever is selected of it


@dataclass(frozen=True, slots=True)
class EncodedEvent:
    """A response, with its event: while that is referenced, no other object has its identity."""

    event: object
    response: Response


@dataclass(frozen=True, slots=True)
class EventView:
    """The form in which a subscription sees events.

    `fingerprint` is equal for subscriptions that see every event alike; `show` makes the API's
    object of an event; `shape` encodes that object, unless it takes the executor.
    """

    fingerprint: bytes
    show: Callable[[Any], Any]
    executor: "Executor[Any]"
    shape: Shape | None


class EventEncoder:
    """Encodes each event once for all subscriptions with the same fingerprint."""

    def __init__(self) -> None:
        self._encoded: SingleFlight[tuple[bytes, int], EncodedEvent] = SingleFlight(
            MAX_SHARED_BYTES, weigh=lambda encoded: weigh(encoded.response) + _EVENT_BYTES
        )

    def encode(self, view: EventView, event: object) -> EncodedEvent | Task[EncodedEvent]:
        """Return the encoded event, or the task that executes it where that takes long."""
        key = view.fingerprint, id(event)
        encoded = self._encoded.get_stored(key)
        if encoded is not None:
            return encoded
        if view.shape is not None and not _is_long(event):
            with suppress(Exception):
                encoded = EncodedEvent(event, Response.from_data(view.shape(view.show(event))))
                self._encoded.store(key, encoded)
                return encoded
        return self._encoded.start(key, partial(_execute, view, event))


def _is_long(event: object) -> bool:
    """Return whether the event has so many items that they are encoded in turns."""
    return isinstance(event, CandidatesSnapshot) and len(event.nodes) > MAX_ITEMS_AT_ONCE


async def _execute(view: EventView, event: object) -> EncodedEvent:
    executor = view.executor.build_per_event_executor(view.show(event))
    result = await run_executor(executor, partial(execute_subscription_event, executor))
    return EncodedEvent(event, await Response.from_long_result(result))


def weigh(response: Response) -> int:
    """Return a response's bytes; one with errors is too heavy to keep, for a retry may succeed."""
    return len(response.payload) if response.outcome == OK else MAX_SHARED_BYTES + 1


def compute_fingerprint(
    operation: Operation,
    variables: Mapping[str, Any] | None,
    identity: Identity,
    *,
    same_for_all: bool = False,
) -> bytes:
    """Return a hash that is equal for operations to which the same event or snapshot looks alike.

    Variables of type Revision are left out: they say where a stream begins, never what an event
    looks like. No field shows a caller what another with the same permissions may not see;
    `same_for_all` leaves permissions out, too.
    """
    values = variables or {}
    shown = {
        name: values[name]
        for definition in operation.node.variable_definitions or ()
        if (name := definition.variable.name.value) in values
        and _get_type_name(definition) != "Revision"
    }
    permissions = None if same_for_all else [identity.role, *sorted(identity.nodes)]
    parts = [operation.document.id, operation.name, shown, permissions]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()


def _get_type_name(definition: VariableDefinitionNode) -> str | None:
    kind = definition.type.type if isinstance(definition.type, NonNullTypeNode) else definition.type
    return kind.name.value if isinstance(kind, NamedTypeNode) else None
