"""The command `python -m bench.soak`: the memory growth of a registry at full load for minutes."""

import asyncio
from itertools import cycle

import click
import uvloop

from bench import processes
from bench.closed_loop import Load
from bench.discovery import AVAILABLE_NODES, REQUIREMENTS
from bench.heartbeat_load import encode_messages, encode_posts, generate_heartbeats
from bench.http_connection import encode_operation, encode_post, open_http_connection
from bench.nodes import insert_nodes
from bench.websocket_connection import open_graphql_connection
from graph.telemetry import logs

_WARM_UP_PARTS = 4
_FEW_CONNECTIONS = 4


@click.command()
@click.option("--nodes", default=10_000, show_default=True, help="Number of nodes.")
@click.option(
    "--parts",
    default=20,
    show_default=True,
    help="Number of measured parts, after four for warm-up.",
)
@click.option("--seconds", default=30.0, show_default=True, help="Duration of each part.")
def main(nodes: int, parts: int, seconds: float) -> None:
    """Keep a registry at full load and report the growth of its memory.

    The load is heartbeats over HTTP and over websockets, and queries for available nodes; each
    connection sends its next request once the last one was answered. Each part opens new
    connections.
    """
    logs.configure_logging("development", "critical")
    uvloop.run(_run_soak(nodes, parts, seconds))


async def _run_soak(node_count: int, part_count: int, seconds: float) -> None:
    async with processes.open_database() as database:
        await insert_nodes(database, node_count)
        async with processes.run_registry(database.url) as registry:
            heartbeats = generate_heartbeats(node_count)
            posts, messages = encode_posts("/graphql", heartbeats), encode_messages(heartbeats)
            query = encode_post(
                "/graphql", encode_operation(AVAILABLE_NODES, require=REQUIREMENTS, limit=10)
            )
            loads = (
                Load(open_http_connection, registry, posts),
                Load(open_graphql_connection, registry, messages, _FEW_CONNECTIONS),
                Load(open_http_connection, registry, cycle([query]), _FEW_CONNECTIONS),
            )
            resident_mb = []
            for part in range(_WARM_UP_PARTS + part_count):
                runs = await asyncio.gather(*(load.run(seconds) for load in loads))
                resident_mb.append(registry.resident_bytes / 1e6)
                phase = "warm-up" if part < _WARM_UP_PARTS else "measured"
                rates = " and ".join(f"{run.rate:,.0f}" for run in runs)
                click.echo(f"{phase}: {resident_mb[-1]:.1f} MB, {rates} answers/s")
    warm_mb, last_mb = resident_mb[_WARM_UP_PARTS - 1], resident_mb[-1]
    duration = part_count * seconds
    click.echo(f"{warm_mb:.1f} MB when warm, {last_mb:.1f} MB {duration:g} s later")


if __name__ == "__main__":
    main()
