"""Poison items: what a background task cannot handle is logged, counted and skipped.

An item is whatever the task takes one by one: a notification, a row, a heartbeat, a step. A failure
that concerns no item passes through and ends the task's run; see `graph.live.background_tasks`.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import structlog
from prometheus_client import Counter

from db.core.errors import Unavailable

log = structlog.get_logger()

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

TASKS = (
    "change_feed",
    "node_snapshot",
    "sweeper",
    "housekeeping",
    "heartbeat_writer",
    "heartbeat_tail",
    "credential_verifier",
    "rate_sync",
    "rejection_log",
    "jwks",
    "peer_metrics",
    "tls",
    "dev_agent",
)
"""The names by which failures are counted."""

ITEM_FAILURES = Counter(
    "node_registry_background_item_failures",
    "Items that a background task skipped, and runs of it that failed.",
    ["task"],
    registry=None,
)
"""One counter for the process, because the tasks are in rooms that know no app."""


def report_failure(task: str, error: Exception, **item: object) -> None:
    """Log and count an item that is skipped. `item` are the fields that identify it."""
    ITEM_FAILURES.labels(task).inc()
    log.error("background_task.item_failed", task=task, exc_info=error, **item)


@contextmanager
def skip_poison(task: str, **item: object) -> Iterator[None]:
    """Skip what is left of the block if it fails, and report that.

    Raises: Unavailable: an outage makes no item poisonous.
    """
    try:
        yield
    except Unavailable:
        raise
    except Exception as error:  # noqa: BLE001  # what is wrong with an item cannot be foreseen
        report_failure(task, error, **item)


async def handle_items(
    task: str, items: Sequence[ItemT], handle: Callable[[Sequence[ItemT]], Awaitable[ResultT]]
) -> list[ResultT]:
    """Handle the items together, and if that fails in halves, so that poison items fail alone.

    Return what the calls that succeeded returned, in the order of the items.

    Raises: Unavailable.
    """
    if not items:
        return []
    try:
        return [await handle(items)]
    except Unavailable:
        raise
    except Exception as error:  # noqa: BLE001  # as above
        if len(items) == 1:
            report_failure(task, error, item=items[0])
            return []
    middle = len(items) // 2
    first = await handle_items(task, items[:middle], handle)
    return first + await handle_items(task, items[middle:], handle)
