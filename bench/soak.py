"""`python -m bench.soak`: a registry at full load for minutes, and whether its memory grows."""

import asyncio
from itertools import cycle

import click
import uvloop

from bench import http_connection, processes, websocket_connection
from bench.closed_loop import Load
from bench.discovery import AVAILABLE, REQUIRE, asked
from bench.heartbeat_load import beats, messages, posts
from bench.nodes import settle
from graph.telemetry import logs

_WARM_UP_PARTS = 4
_FEW = 4


@click.command()
@click.option("--nodes", default=10_000, show_default=True)
@click.option("--parts", default=20, show_default=True, help="After four to warm up.")
@click.option("--seconds", default=30.0, show_default=True, help="Of each part.")
def main(nodes: int, parts: int, seconds: float) -> None:
    """Heartbeats over HTTP and websockets, and questions, each as soon as the last was answered.

    For each part all connections are made anew.
    """
    logs.configure("development", "critical")
    uvloop.run(_soak(nodes, parts, seconds))


async def _soak(nodes: int, parts: int, seconds: float) -> None:
    async with processes.database() as database:
        await settle(database, nodes)
        async with processes.registry(database.url) as registry:
            sent = beats(nodes)
            question = http_connection.post("/graphql", asked(AVAILABLE, require=REQUIRE, limit=10))
            loads = (
                Load(http_connection.dial, registry, posts("/graphql", sent)),
                Load(websocket_connection.operations, registry, messages(sent), _FEW),
                Load(http_connection.dial, registry, cycle([question]), _FEW),
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
