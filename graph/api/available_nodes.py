"""The result of `availableNodes`: ranked candidates, and the reasons that exclude other nodes."""

from datetime import datetime
from typing import Annotated, Self

import strawberry

from db.core.enums import NodeRanking
from db.core.pagination import require_page_size
from db.core.turns import take_turns
from db.routing.matching import Requirements, explain_exclusions
from graph.api.fields import field
from graph.api.node import Node
from graph.api.scalars import Revision
from graph.live.node_snapshot import NodeSnapshot, Ranking

DEFAULT_EXCLUDED = 20


@strawberry.type(description="A node that meets the requirements.")
class NodeCandidate:
    node: Node = field("The node.")
    score: float = field("The node's score under the requested ranking, 0 to 1; higher is better.")


@strawberry.type(description="A node that does not meet the requirements.")
class NodeExclusion:
    node_id: str = field("The id of the node.")
    reasons: list[str] = field("One reason for each requirement that the node does not meet.")


@strawberry.type(
    description="The nodes that meet the requirements now. A node that is OFFLINE or in"
    " MAINTENANCE never meets them. A DEGRADED node meets them only if includeDegraded"
    " is true. A node that has not measured a required metric does not meet them."
)
class AvailableNodes:
    requirements: strawberry.Private[Requirements]
    ranked: strawberry.Private[Ranking]

    candidates: list[NodeCandidate] = field("The candidates, best first.")
    revision: Revision = field("The revision of the change log up to which the result is current.")
    observed_at: datetime = field(
        "When the registry last read the state of the nodes, at most one second ago."
    )

    @strawberry.field(
        description="The nodes that do not meet the requirements, by node id, with the reasons."
    )
    async def excluded(
        self,
        first: Annotated[
            int | None,
            strawberry.argument(description="The maximum number of entries, 0 to 1,000."),
        ] = DEFAULT_EXCLUDED,
    ) -> list[NodeExclusion]:
        count = DEFAULT_EXCLUDED if first is None else first
        require_page_size(count)
        excluded = self.ranked.excluded[:count]
        explained = await take_turns(explain_exclusions(self.requirements, excluded))
        return [
            NodeExclusion(node_id=candidate.node_id, reasons=reasons)
            for candidate, reasons in zip(excluded, explained, strict=True)
        ]

    @classmethod
    async def from_snapshot(
        cls,
        snapshot: NodeSnapshot,
        requirements: Requirements,
        ranking: NodeRanking,
        limit: int,
    ) -> Self:
        ranked, revision, observed_at = await snapshot.rank_candidates(requirements, ranking, limit)
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
