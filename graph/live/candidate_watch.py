"""Changes of the set of nodes that meet some requirements, computed once for all followers."""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from db.core import tables
from db.core.database import Database
from db.core.turns import Steps
from db.registry import nodes
from db.routing.candidates import Candidate
from db.routing.matching import Requirements, explain_exclusions, partition
from graph.core.broadcast import Broadcast
from graph.core.single_flight import SingleFlight
from graph.live.stream_events import (
    CandidateEntered,
    CandidateEvent,
    CandidateLeft,
    CandidatesSnapshot,
)

MAX_STEPS = 64
"""Steps that are kept; a follower further behind receives the whole set again."""


class WatchFailed(Exception):
    """A step of the watch could not be made; its followers must begin again."""


@dataclass(frozen=True, slots=True)
class Movement:
    """What some changed candidates mean for a watch: those that enter it, and those that leave."""

    entering: Sequence[Candidate]
    leaving: Sequence[tuple[Candidate, Sequence[str]]]
    """With the reasons."""


class CandidateWatch:
    """The set of matching nodes and its latest steps, each the changes of one refresh.

    `step` is the number of the latest.
    """

    def __init__(
        self,
        database: Database,
        requirements: Requirements,
        matching: Iterable[Candidate],
        revision: int,
    ) -> None:
        """Watch from the revision at which `matching` are the candidates that match."""
        self._database = database
        self._requirements = requirements
        self._available = {candidate.id for candidate in matching}
        self._revision = revision
        self._steps: dict[int, Sequence[CandidateEvent]] = {}
        self._snapshots: SingleFlight[int, CandidatesSnapshot] = SingleFlight(1)
        self._stepped = Broadcast()
        self.step = 0
        self.follower_count = 0
        self._failed = False

    def find_movement(self, changed: Sequence[Candidate]) -> Steps[Movement]:
        """Return the changed candidates that enter the set, and those that leave it.

        The watch must not move meanwhile.
        """
        matching, others = yield from partition(self._requirements, changed)
        leaving = [candidate for candidate in others if candidate.id in self._available]
        reasons = yield from explain_exclusions(self._requirements, leaving)
        return Movement(
            [candidate for candidate in matching if candidate.id not in self._available],
            list(zip(leaving, reasons, strict=True)),
        )

    def apply_movement(
        self,
        revision: int,
        movement: Movement,
        removed: Iterable[Candidate],
        rows: Mapping[UUID, tables.Node],
    ) -> None:
        """Move by one step. `rows` has the entering nodes that still exist."""
        self._revision = revision
        removals = [(candidate, ["is no longer registered"]) for candidate in removed]
        events: list[CandidateEvent] = []
        # Leaving comes first: a removed node may be registered again under the same id.
        for candidate, reasons in [*movement.leaving, *removals]:
            if candidate.id in self._available:
                self._available.remove(candidate.id)
                events.append(CandidateLeft(revision, candidate.node_id, reasons))
        for candidate in movement.entering:
            row = rows.get(candidate.id)
            # A node whose status has changed since comes with the next refresh.
            if (
                candidate.id not in self._available
                and row is not None
                and row.status is candidate.status
            ):
                self._available.add(candidate.id)
                events.append(CandidateEntered(revision, row))
        if events:
            self.step += 1
            self._steps[self.step] = events
            self._steps.pop(self.step - MAX_STEPS, None)
            self._stepped.notify()

    async def load_snapshot(self) -> tuple[int, CandidatesSnapshot]:
        """Return the current step, and the set at it."""
        step = self.step
        return step, await self._snapshots.get(step, partial(self._load, self._revision))

    async def wait_for_step(self, step: int) -> Sequence[CandidateEvent] | None:
        """Wait for the step after `step`; return its events, None if they are no longer kept.

        Raises: WatchFailed.
        """
        while step == self.step and not self._failed:
            await self._stepped.wait()
        if self._failed:
            raise WatchFailed
        return self._steps.get(step + 1)

    def fail(self) -> None:
        """End the watch, because a step could not be made."""
        self._failed = True
        self._stepped.notify()

    async def _load(self, revision: int) -> CandidatesSnapshot:
        async with self._database.read() as session:
            rows = await nodes.find_nodes_by_uuid(session, list(self._available))
        return CandidatesSnapshot(revision, sorted(rows.values(), key=lambda row: row.node_id))


async def follow_candidates(
    opening: AbstractAsyncContextManager[CandidateWatch],
) -> AsyncGenerator[Sequence[CandidateEvent], None]:
    """Yield the set, then what enters and leaves it; after falling behind, the set again."""
    async with opening as watch:
        while True:
            step, snapshot = await watch.load_snapshot()
            yield [snapshot]
            while (events := await watch.wait_for_step(step)) is not None:
                yield events
                step += 1
