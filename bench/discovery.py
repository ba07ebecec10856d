"""How many questions of routers and dashboards one process answers a second, over HTTP.

The limit is a bare Starlette route that reads the same body as JSON and sends it back.
"""

from collections.abc import AsyncIterator
from itertools import cycle

import orjson

from bench import processes
from bench.closed_loop import CONNECTIONS, Load
from bench.http_connection import encode_post, open_connection
from bench.nodes import insert_nodes
from bench.results import Result, Target

AVAILABLE_NODES = """
query Available($require: NodeRequirements, $limit: Int) {
  availableNodes(require: $require, limit: $limit) {
    candidates { score node { nodeId hostname ipAddress localIp status } }
    revision
    observedAt
  }
}
"""
REQUIREMENTS = {
    "roles": ["PRODUCTION"],
    "labels": {"all": ["gpu"]},
    "model": "llama3:8b",
    "minGpuMemoryFreeMb": 8000,
}
NODES_PAGE = """
query Page($first: Int) {
  nodes(first: $first) {
    nodes {
      nodeId name role type labels hostname status statusReason statusSince lastHeartbeat
      registeredAt updatedAt
      profiles { name config }
    }
  }
}
"""


async def measure_discovery(*, quick: bool) -> AsyncIterator[Result]:
    fleet, seconds, runs = (200, 0.05, 1) if quick else (10_000, 1.3, 3)
    questions = (
        (
            f"availableNodes(limit: 10) of {fleet:,} nodes",
            [encode_operation(AVAILABLE_NODES, require=REQUIREMENTS, limit=10)],
            Target("ratio", "at least", 0.25),
        ),
        (
            "the same, of a thousand different questions",
            [
                encode_operation(
                    AVAILABLE_NODES,
                    require={**REQUIREMENTS, "minGpuMemoryFreeMb": megabytes},
                    limit=10,
                )
                for megabytes in range(8000, 9000)
            ],
            None,
        ),
        (
            "nodes(first: 100), 12 fields and profiles",
            [encode_operation(NODES_PAGE, first=100)],
            None,
        ),
    )
    async with processes.open_database() as database, processes.run_echo_server() as bare:
        await insert_nodes(database, fleet)
        async with processes.run_registry(database.url) as registry:
            for name, bodies, target in questions:
                ask, echo = (
                    [encode_post(path, body) for body in bodies] for path in ("/graphql", "/echo")
                )
                figures, limits = [], []
                for _ in range(1 + runs):
                    figures.append(await Load(open_connection, registry, cycle(ask)).run(seconds))
                    limits.append(await Load(open_connection, bare, cycle(echo)).run(seconds))
                yield Result(
                    name,
                    "requests/s",
                    [run.rate for run in figures[1:]],
                    "bare JSON echo of the same body",
                    [run.rate for run in limits[1:]],
                    target,
                    f"{len(figures[0].sample_answer):,} bytes each, on {CONNECTIONS} connections",
                )


def encode_operation(query: str, **variables: object) -> bytes:
    return orjson.dumps({"query": query, "variables": variables})
