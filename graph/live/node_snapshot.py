"""The fleet as this process sees it: what every node offers, not much older than a second.

It looks only while somebody asks. A look costs two statements at most, and tells what has changed
since the last one, whoever changed it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

import structlog

from db.core import tables
from db.core.database import Database
from db.core.enums import NodeRanking
from db.core.errors import Unavailable
from db.registry import nodes
from db.routing import node_delta
from db.routing.candidates import Candidate
from db.routing.matching import Requirements, partition
from db.routing.scoring import rank
from graph.core.single_flight import SingleFlight
from graph.live.candidate_watch import CandidateWatch
from graph.live.change_feed import ChangeFeed

log = structlog.get_logger()

MAX_AGE_SECONDS = 1.0
"""How old an answer may be."""

_LOOK_SECONDS = 0.5
_BETWEEN_LOOKS_SECONDS = 0.05
_IDLE_SECONDS = 10.0
_MAX_ANSWERS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The best candidates for a question with their scores, and the excluded, by node id."""

    candidates: list[tuple[tables.Node, float]]
    excluded: list[Candidate]


class NodeSnapshot:
    """`revision` and `observed_at` are those of the last look."""

    def __init__(self, database: Database, feed: ChangeFeed) -> None:
        self._database = database
        self._feed = feed
        self._offers: dict[UUID, Candidate] = {}
        self._answers: SingleFlight[tuple[Requirements, NodeRanking, int], Ranking] = SingleFlight(
            _MAX_ANSWERS
        )
        self._watches: dict[Requirements, CandidateWatch] = {}
        self._horizon: int | None = None
        self._looked_at = self._asked_at = float("-inf")
        self._looks = 0
        self._asked = asyncio.Event()
        self._looking = asyncio.Lock()
        self.revision = 0
        self.observed_at = datetime.min.replace(tzinfo=UTC)

    @property
    def subscriber_count(self) -> int:
        return sum(watch.followers for watch in self._watches.values())

    def get_version(self) -> int | None:
        """The number of the last look, if an answer may still be given by it."""
        self._note_use()
        return None if self._is_old() else self._looks

    async def rank_candidates(self, requirements: Requirements, ranking: NodeRanking, limit: int) -> Ranking:
        """Return the answer as of at most a second ago, once for all who ask the same.

        Raises: Unavailable: the database did not answer.
        """
        await self._ensure_current()
        question = requirements, ranking, limit
        return await self._answers.get(question, partial(self._rank_candidates, *question))

    async def _rank_candidates(
        self, requirements: Requirements, ranking: NodeRanking, limit: int
    ) -> Ranking:
        fit, unfit = partition(requirements, self._offers.values())
        best = rank(fit, ranking)[:limit]
        excluded = sorted(unfit, key=lambda offer: offer.node_id)
        async with self._database.read() as session:
            rows = await nodes.find_nodes_by_uuid(session, [offer.id for offer, _ in best])
        candidates = [
            (row, score)
            for offer, score in best
            # A node whose status has changed since the last look is left out.
            if (row := rows.get(offer.id)) is not None and row.status is offer.status
        ]
        return Ranking(candidates, excluded)

    @asynccontextmanager
    async def open_watch(self, requirements: Requirements) -> AsyncIterator[CandidateWatch]:
        """One watch for all who ask for the same. Raises Unavailable as `answer` does."""
        await self._ensure_current()
        async with self._looking:  # a look that is under way knows nothing of this watch
            watch = self._watches.get(requirements)
            if watch is None:
                watch = CandidateWatch(
                    self._database, requirements, self._offers.values(), self.revision
                )
                self._watches[requirements] = watch
            watch.followers += 1
        try:
            yield watch
        finally:
            watch.followers -= 1
            if not watch.followers:
                del self._watches[requirements]

    async def run(self) -> None:
        """Keeps it current for as long as somebody asks, over outages of the database."""
        while True:
            if not self._watches and _now() - self._asked_at > _IDLE_SECONDS:
                self._asked.clear()
                await self._asked.wait()
            try:
                async with self._looking:
                    await self._refresh()
            except Unavailable as error:
                log.warning("fleet.unavailable", cause=repr(error.__cause__))
            await asyncio.sleep(_BETWEEN_LOOKS_SECONDS)
            await self._feed.wait_for_change(_LOOK_SECONDS - _BETWEEN_LOOKS_SECONDS)

    async def _ensure_current(self) -> None:
        self._note_use()
        if self._is_old():
            async with self._looking:
                if self._is_old():
                    await self._refresh()

    def _note_use(self) -> None:
        self._asked_at = _now()
        self._asked.set()

    def _is_old(self) -> bool:
        return _now() - self._looked_at > MAX_AGE_SECONDS

    async def _refresh(self) -> None:
        began = _now()
        async with self._database.read() as session:
            seen = await node_delta.read_delta(session, self._horizon)
            entering = {
                offer.id
                for watch in self._watches.values()
                for offer in watch.find_entering(seen.changed)
            }
            rows = await nodes.find_nodes_by_uuid(session, list(entering)) if entering else {}
        self._offers.update((offer.id, offer) for offer in seen.changed)
        removed = [self._offers.pop(node) for node in seen.removed if node in self._offers]
        if seen.changed or removed:
            self._answers = SingleFlight(_MAX_ANSWERS)
        for watch in self._watches.values():
            watch.apply_delta(seen.revision, seen.changed, removed, rows)
        self._horizon, self._looked_at, self._looks = seen.horizon, began, self._looks + 1
        self.revision, self.observed_at = seen.revision, seen.observed_at


def _now() -> float:
    return asyncio.get_running_loop().time()
