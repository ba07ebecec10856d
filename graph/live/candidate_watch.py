"""The nodes that meet requirements, as the set changes: worked out once for all who follow it."""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from uuid import UUID

from db.core import tables
from db.core.database import Database
from db.registry import nodes
from db.routing.candidates import Candidate
from db.routing.matching import Requirements, list_unmet_requirements, partition
from graph.core.broadcast import Broadcast
from graph.core.single_flight import SingleFlight
from graph.live.stream_events import (
    CandidateEntered,
    CandidateEvent,
    CandidateLeft,
    CandidatesSnapshot,
)

MAX_STEPS = 64
"""Changes of the set by which a follower may lag before it is told the whole set anew."""


class CandidateWatch:
    """Each step is what one look has changed; `step` counts them."""

    def __init__(
        self,
        database: Database,
        requirements: Requirements,
        offers: Iterable[Candidate],
        revision: int,
    ) -> None:
        self._database = database
        self._requirements = requirements
        self._available = {offer.id for offer in partition(requirements, offers)[0]}
        self._revision = revision
        self._steps: dict[int, Sequence[CandidateEvent]] = {}
        self._snapshots: SingleFlight[int, CandidatesSnapshot] = SingleFlight(1)
        self._moved = Broadcast()
        self.step = 0
        self.followers = 0

    def find_entering(self, changed: Iterable[Candidate]) -> list[Candidate]:
        fit, _ = partition(self._requirements, changed)
        return [offer for offer in fit if offer.id not in self._available]

    def apply_delta(
        self,
        revision: int,
        changed: Sequence[Candidate],
        removed: Iterable[Candidate],
        rows: Mapping[UUID, tables.Node],
    ) -> None:
        """`rows` has the nodes of `entering`, but for those that are gone again."""
        self._revision = revision
        fit, unfit = partition(self._requirements, changed)
        leaving = [(offer, list_unmet_requirements(self._requirements, offer)) for offer in unfit]
        leaving += [(offer, ["is not registered any more"]) for offer in removed]
        events: list[CandidateEvent] = []
        # First, for a node that was removed may be here again under the same id.
        for offer, reasons in leaving:
            if offer.id in self._available:
                self._available.remove(offer.id)
                events.append(CandidateLeft(revision, offer.node_id, reasons))
        for offer in fit:
            row = rows.get(offer.id)
            # One that is not what it offered any more comes with the next look.
            if offer.id not in self._available and row is not None and row.status is offer.status:
                self._available.add(offer.id)
                events.append(CandidateEntered(revision, row))
        if events:
            self.step += 1
            self._steps[self.step] = events
            self._steps.pop(self.step - MAX_STEPS, None)
            self._moved.notify()

    async def load_snapshot(self) -> tuple[int, CandidatesSnapshot]:
        """The set, and the step that it was at."""
        step = self.step
        return step, await self._snapshots.get(step, partial(self._load, self._revision))

    async def wait_for_step(self, step: int) -> Sequence[CandidateEvent] | None:
        """The next step, as soon as there is one; None when it is no longer kept."""
        while step == self.step:
            await self._moved.wait()
        return self._steps.get(step + 1)

    async def _load(self, revision: int) -> CandidatesSnapshot:
        async with self._database.read() as session:
            rows = await nodes.find_nodes_by_uuid(session, list(self._available))
        return CandidatesSnapshot(revision, sorted(rows.values(), key=lambda row: row.node_id))


async def follow_candidates(
    watching: AbstractAsyncContextManager[CandidateWatch],
) -> AsyncGenerator[Sequence[CandidateEvent], None]:
    """The set as it stands, then what enters and leaves; the set again for one that fell behind."""
    async with watching as watch:
        while True:
            step, snapshot = await watch.load_snapshot()
            yield [snapshot]
            while (events := await watch.wait_for_step(step)) is not None:
                yield events
                step += 1
