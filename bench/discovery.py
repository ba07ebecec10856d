"""How many queries of routers and dashboards one process answers a second, over HTTP.

The limit is a bare Starlette route that reads the same body as JSON and sends it back.
"""

from collections.abc import AsyncIterator
from itertools import cycle

from bench import processes
from bench.closed_loop import CONNECTIONS, Load
from bench.http_connection import encode_operation, encode_post, open_http_connection
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
    node_count, seconds, run_count = (200, 0.05, 1) if quick else (10_000, 1.3, 3)
    cases = (
        (
            f"availableNodes(limit: 10) of {node_count:,} nodes",
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
    async with processes.open_database() as database, processes.run_echo_server() as echo_server:
        await insert_nodes(database, node_count)
        async with processes.run_registry(database.url) as registry:
            for name, bodies, target in cases:
                queries, echoes = (
                    [encode_post(path, body) for body in bodies] for path in ("/graphql", "/echo")
                )
                figures, limits = [], []
                for _ in range(1 + run_count):  # the first run is the warm-up
                    load = Load(open_http_connection, registry, cycle(queries))
                    baseline = Load(open_http_connection, echo_server, cycle(echoes))
                    figures.append(await load.run(seconds))
                    limits.append(await baseline.run(seconds))
                yield Result(
                    name,
                    "requests/s",
                    [run.rate for run in figures[1:]],
                    "bare JSON echo of the same body",
                    [run.rate for run in limits[1:]],
                    target,
                    f"{len(figures[0].sample_answer):,} bytes each, on {CONNECTIONS} connections",
                )
