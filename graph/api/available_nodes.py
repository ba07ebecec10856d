"""The answer to the router: which nodes can do this now, best first, and why the others cannot."""

from datetime import datetime
from typing import Annotated, Self

import strawberry

from db.core.enums import NodeRanking
from db.core.pagination import require_page_size
from db.routing.matching import Requirements, list_unmet_requirements
from graph.api.fields import field
from graph.api.node import Node
from graph.api.scalars import Revision
from graph.live.node_snapshot import NodeSnapshot, Ranking

DEFAULT_EXCLUDED = 20


@strawberry.type(description="A node that meets the requirements.")
class NodeCandidate:
    node: Node = field("The node.")
    score: float = field("0 to 1, higher is better under the ranking asked for.")


@strawberry.type(description="A node that does not meet the requirements.")
class NodeExclusion:
    node_id: str = field("The node.")
    reasons: list[str] = field("One line for each requirement that the node does not meet.")


@strawberry.type(
    description="The nodes that meet the requirements now. Nodes that are OFFLINE or in"
    " MAINTENANCE never do, nor, unless they are asked for, those that are DEGRADED; and a node"
    " does not that has not measured what is required."
)
class AvailableNodes:
    requirements: strawberry.Private[Requirements]
    ranked: strawberry.Private[Ranking]

    candidates: list[NodeCandidate] = field("The best of them, the best first.")
    revision: Revision = field("The change log had come so far when the fleet was looked at.")
    observed_at: datetime = field("When it was looked at: at most a second ago.")

    @strawberry.field(
        description="Why the others were left out, at most first of them, by node id."
    )
    def excluded(
        self,
        first: Annotated[
            int | None, strawberry.argument(description="How many at most, 0 to 1,000.")
        ] = DEFAULT_EXCLUDED,
    ) -> list[NodeExclusion]:
        count = DEFAULT_EXCLUDED if first is None else first
        require_page_size(count)
        return [
            NodeExclusion(
                node_id=candidate.node_id,
                reasons=list_unmet_requirements(self.requirements, candidate),
            )
            for candidate in self.ranked.excluded[:count]
        ]

    @classmethod
    async def from_snapshot(
        cls,
        snapshot: NodeSnapshot,
        requirements: Requirements,
        ranking: NodeRanking,
        limit: int,
    ) -> Self:
        ranked = await snapshot.answer(requirements, ranking, limit)
        revision, observed_at = snapshot.revision, snapshot.observed_at
        return cls(
            requirements=requirements,
            ranked=ranked,
            candidates=[
                NodeCandidate(node=Node.from_row(row), score=score)
                for row, score in ranked.candidates
            ],
            revision=Revision(revision),
            observed_at=observed_at,
        )
