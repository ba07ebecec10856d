"""This process's copy in memory of what the router's question needs of every node.

It is at most about a second old, and is refreshed only while it is used. A refresh costs at most
two statements and reads what has changed since the last one, whichever process changed it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from operator import attrgetter
from uuid import UUID

import structlog

from db.core import tables
from db.core.database import Database
from db.core.enums import NodeRanking
from db.core.errors import Unavailable
from db.core.turns import Steps, take_turns
from db.registry import nodes
from db.routing import node_delta
from db.routing.candidates import Candidate
from db.routing.matching import Requirements, partition
from db.routing.scoring import rank
from graph.core.item_failures import handle_items, report_failure
from graph.core.single_flight import SingleFlight
from graph.live.candidate_watch import CandidateWatch, Movement
from graph.live.change_feed import ChangeFeed

log = structlog.get_logger()

MAX_AGE_SECONDS = 1.0
"""The maximum age of an answer."""

_TASK = "node_snapshot"
_REFRESH_SECONDS = 0.5
_MIN_PAUSE_SECONDS = 0.05
_IDLE_SECONDS = 10.0
_MAX_RANKINGS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The best candidates for a question with their scores, and the excluded, by node id."""

    candidates: list[tuple[tables.Node, float]]
    excluded: list[Candidate]


@dataclass(slots=True)
class _Unseen:
    """The changes by which the watches have not moved yet, several refreshes together."""

    revision: int = 0
    changed: dict[UUID, Candidate] = field(default_factory=dict)
    removed: dict[UUID, Candidate] = field(default_factory=dict)

    def add(self, later: "_Unseen") -> None:
        self.revision = later.revision
        self.changed.update(later.changed)
        self.removed.update(later.removed)
        for node in later.removed:
            self.changed.pop(node, None)


class NodeSnapshot:
    """The candidates of all nodes; `revision` and `observed_at` are of the last refresh."""

    def __init__(self, database: Database, change_feed: ChangeFeed) -> None:
        self._database = database
        self._change_feed = change_feed
        self._candidates: dict[UUID, Candidate] = {}
        self._rankings: SingleFlight[tuple[Requirements, NodeRanking, int], Ranking] = SingleFlight(
            _MAX_RANKINGS
        )
        self._watches: dict[Requirements, CandidateWatch] = {}
        self._horizon: int | None = None
        self._refreshed_at = self._used_at = float("-inf")
        self._version = 0
        self._used = asyncio.Event()
        self._refreshing = asyncio.Lock()
        # Moving the watches can take long, and answers must not wait for it.
        self._moving = asyncio.Lock()
        self._unseen: _Unseen | None = None
        self.revision = 0
        self.observed_at = datetime.min.replace(tzinfo=UTC)

    @property
    def subscriber_count(self) -> int:
        return sum(watch.follower_count for watch in self._watches.values())

    def get_version(self) -> int | None:
        """Return the number of the last refresh, or None if that is too old for an answer."""
        self._note_use()
        return None if self._is_old() else self._version

    async def rank_candidates(
        self, requirements: Requirements, ranking: NodeRanking, limit: int
    ) -> tuple[Ranking, int, datetime]:
        """Return the ranking, at most a second old, with its revision and the time of its refresh.

        Equal questions share one computation. Raises: Unavailable: the database did not answer.
        """
        await self._ensure_current()
        # A refresh while the rows are read has a later revision than the ranking.
        revision, observed_at = self.revision, self.observed_at
        question = requirements, ranking, limit
        ranked = await self._rankings.get(question, partial(self._rank_candidates, *question))
        return ranked, revision, observed_at

    async def _rank_candidates(
        self, requirements: Requirements, ranking: NodeRanking, limit: int
    ) -> Ranking:
        # A refresh must not change the candidates meanwhile.
        candidates = tuple(self._candidates.values())
        best, excluded = await take_turns(_match_and_rank(requirements, ranking, candidates))
        best = best[:limit]
        rows = await self._find_nodes([candidate.id for candidate, _ in best])
        ranked = [
            (row, score)
            for candidate, score in best
            # A node whose status has changed since the last refresh is left out.
            if (row := rows.get(candidate.id)) is not None and row.status is candidate.status
        ]
        return Ranking(ranked, excluded)

    @asynccontextmanager
    async def open_watch(self, requirements: Requirements) -> AsyncIterator[CandidateWatch]:
        """Yield the watch of these requirements, which all their followers share.

        Raises: Unavailable: the database did not answer.
        """
        await self._ensure_current()
        async with self._moving:
            watch = self._watches.get(requirements)
            if watch is None:
                await self._move_watches()
                candidates, revision = tuple(self._candidates.values()), self.revision
                matching, _ = await take_turns(partition(requirements, candidates))
                watch = CandidateWatch(self._database, requirements, matching, revision)
                self._watches[requirements] = watch
            watch.follower_count += 1
        try:
            yield watch
        finally:
            watch.follower_count -= 1
            if not watch.follower_count and self._watches.get(requirements) is watch:
                del self._watches[requirements]

    async def run(self) -> None:
        """Refresh for as long as the snapshot is used, through outages of the database."""
        while True:
            if not self._watches and _now() - self._used_at > _IDLE_SECONDS:
                self._used.clear()
                await self._used.wait()
            try:
                async with self._refreshing:
                    await self._refresh()
                async with self._moving:
                    await self._move_watches()
            except Unavailable as error:
                log.warning("node_snapshot.unavailable", cause=repr(error.__cause__))
            await asyncio.sleep(_MIN_PAUSE_SECONDS)
            await self._change_feed.wait_for_change(_REFRESH_SECONDS - _MIN_PAUSE_SECONDS)

    async def _find_nodes(self, ids: Sequence[UUID]) -> dict[UUID, tables.Node]:
        """Return the nodes that still exist, without those whose rows cannot be read."""

        async def find(part: Sequence[UUID]) -> Mapping[UUID, tables.Node]:
            async with self._database.read() as session:
                return await nodes.find_nodes_by_uuid(session, list(part))

        parts = await handle_items(_TASK, ids, find)
        return {id_: row for part in parts for id_, row in part.items()}

    async def _ensure_current(self) -> None:
        self._note_use()
        if self._is_old():
            async with self._refreshing:
                if self._is_old():
                    await self._refresh()

    def _note_use(self) -> None:
        self._used_at = _now()
        self._used.set()

    def _is_old(self) -> bool:
        return _now() - self._refreshed_at > MAX_AGE_SECONDS

    async def _refresh(self) -> None:
        started = _now()
        async with self._database.read() as session:
            delta = await node_delta.read_delta(session, self._horizon)
        for node, error in delta.unreadable:
            report_failure(_TASK, error, node=str(node))
        changed = {candidate.id: candidate for candidate in delta.changed}
        self._candidates.update(changed)
        removed = {
            node: self._candidates.pop(node) for node in delta.removed if node in self._candidates
        }
        if changed or removed:
            self._rankings = SingleFlight(_MAX_RANKINGS)
        if self._watches or self._moving.locked():  # a watch may be opening
            self._unseen = self._unseen or _Unseen()
            self._unseen.add(_Unseen(delta.revision, changed, removed))
        self._horizon, self._refreshed_at, self._version = delta.horizon, started, self._version + 1
        self.revision, self.observed_at = delta.revision, delta.observed_at

    async def _move_watches(self) -> None:
        """Move all watches by what has changed since they moved last. Requires `_moving`."""
        while self._unseen is not None:
            unseen, self._unseen = self._unseen, None
            try:
                await self._move_watches_by(unseen)
            except BaseException:
                if self._unseen is not None:
                    unseen.add(self._unseen)
                self._unseen = unseen
                raise

    async def _move_watches_by(self, unseen: _Unseen) -> None:
        changed = list(unseen.changed.values())
        movements: list[tuple[Requirements, CandidateWatch, Movement]] = []
        for requirements, watch in list(self._watches.items()):
            with self._end_failing_watch(requirements, watch):
                movement = await take_turns(watch.find_movement(changed))
                movements.append((requirements, watch, movement))
        entering = {candidate.id for *_, movement in movements for candidate in movement.entering}
        rows = await self._find_nodes(list(entering))
        for requirements, watch, movement in movements:
            with self._end_failing_watch(requirements, watch):
                watch.apply_movement(unseen.revision, movement, unseen.removed.values(), rows)

    @contextmanager
    def _end_failing_watch(
        self, requirements: Requirements, watch: CandidateWatch
    ) -> Iterator[None]:
        """End the watch if the block raises; the others go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever it is, it concerns this watch alone
            report_failure(_TASK, error, requirements=requirements)
            if self._watches.get(requirements) is watch:
                del self._watches[requirements]
            watch.fail()


def _match_and_rank(
    requirements: Requirements, ranking: NodeRanking, candidates: Iterable[Candidate]
) -> Steps[tuple[list[tuple[Candidate, float]], list[Candidate]]]:
    """Return the ranked candidates, and the excluded ones by node id."""
    matching, others = yield from partition(requirements, candidates)
    ranked = rank(matching, ranking)
    yield
    return ranked, sorted(others, key=attrgetter("node_id"))


def _now() -> float:
    return asyncio.get_running_loop().time()
