"""`python -m bench.soak`: a registry at full load for minutes, and whether its memory grows."""

import asyncio
from itertools import cycle

import click
import uvloop

from bench import http_connection, processes, websocket_connection
from bench.closed_loop import Load
from bench.discovery import AVAILABLE_NODES, REQUIREMENTS, encode_operation
from bench.heartbeat_load import encode_messages, encode_posts, generate_heartbeats
from bench.nodes import insert_nodes
from graph.telemetry import logs

_WARM_UP_PARTS = 4
_FEW_CONNECTIONS = 4


@click.command()
@click.option("--nodes", default=10_000, show_default=True)
@click.option("--parts", default=20, show_default=True, help="After four to warm up.")
@click.option("--seconds", default=30.0, show_default=True, help="Of each part.")
def main(nodes: int, parts: int, seconds: float) -> None:
    """Heartbeats over HTTP and websockets, and questions, each as soon as the last was answered.

    For each part all connections are made anew.
    """
    logs.configure("development", "critical")
    uvloop.run(_run_soak(nodes, parts, seconds))


async def _run_soak(nodes: int, parts: int, seconds: float) -> None:
    async with processes.open_database() as database:
        await insert_nodes(database, nodes)
        async with processes.run_registry(database.url) as registry:
            sent = generate_heartbeats(nodes)
            question = http_connection.encode_post(
                "/graphql", encode_operation(AVAILABLE_NODES, require=REQUIREMENTS, limit=10)
            )
            loads = (
                Load(http_connection.open_connection, registry, encode_posts("/graphql", sent)),
                Load(
                    websocket_connection.open_graphql_connection,
                    registry,
                    encode_messages(sent),
                    _FEW_CONNECTIONS,
                ),
                Load(
                    http_connection.open_connection, registry, cycle([question]), _FEW_CONNECTIONS
                ),
            )
            resident = []
            for part in range(_WARM_UP_PARTS + parts):
                runs = await asyncio.gather(*(load.run(seconds) for load in loads))
                resident.append(registry.resident_bytes / 1e6)
                when = "warm-up" if part < _WARM_UP_PARTS else "measured"
                rates = " and ".join(f"{run.rate:,.0f}" for run in runs)
                click.echo(f"{when}: {resident[-1]:.1f} MB, {rates} answers/s")
    warm = resident[_WARM_UP_PARTS - 1 :]
    click.echo(f"{warm[0]:.1f} MB when warm, {warm[-1]:.1f} MB {parts * seconds:g} s later")


if __name__ == "__main__":
    main()
