"""The command line of the agent. It writes results to stdout and logs to stderr."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from agent import documents, identity
from agent.console import (
    add_connection_options,
    add_node_options,
    fail,
    load_configuration,
    one_line_errors,
)
from agent.credentials import AuthenticatedTransport, Credentials, read_node_token
from agent.discovery import Discovery
from agent.errors import RegistryUnavailableError, RequestRejectedError
from agent.http_transport import HttpTransport
from agent.identity import StateError
from agent.install import install, uninstall
from agent.logs import configure_logs
from agent.machine import observe_machine
from agent.metrics import Meter
from agent.pace import Clock, Schedule
from agent.replies import Node, NodeStatusData, NodeWithReason
from agent.runner import Runner
from agent.settings import PREFIX, AgentSettings, BadSettingError
from agent.signals import run_until_stopped
from agent.terminal import echo, escape
from agent.tls import TlsConfig, UnusableFileError
from agent.transport import FallbackTransport, RegistryTransport

BOOTSTRAP_RETRY_SECONDS = 60.0

T = TypeVar("T")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Each option may also be given as an environment variable: NODE_AGENT_REGISTRY_URL,"
    " NODE_AGENT_ROLE and so on. The token is read only from NODE_AGENT_TOKEN, because everyone"
    " on a machine can read its command lines.",
)
@click.option("--verbose", is_flag=True, help="Log every heartbeat and every attempt.")
@click.version_option(package_name="dagi-node-registry")
def main(*, verbose: bool) -> None:
    """Register this machine as a node of a DAGI network and send its heartbeats."""
    configure_logs(verbose=verbose)


main.add_command(install)
main.add_command(uninstall)


@main.command()
@add_node_options
@click.option("--node-id", help="Use this id, e.g. one that the registry was seeded with.")
@click.option("--json", "as_json", is_flag=True, help="Print the node as JSON.")
def bootstrap(*, node_id: str | None, as_json: bool, **options: str | None) -> None:
    """Register this machine, send one heartbeat and print the node.

    Waits up to a minute for a registry that is unavailable. The settings given here are saved and
    apply to later commands too.
    """
    with one_line_errors():
        settings, directory = load_configuration(options, writing=True)
        with identity.lock_directory(directory):
            check_node_id(node_id, directory)
            node = run_coroutine(
                settings, register_and_send_heartbeat(settings, directory, node_id)
            )
            identity.save_bootstrap_settings(directory, settings.to_bootstrap_settings())
    print_node(node, as_json=as_json)


@main.command()
@add_node_options
@click.option("--exit-with-parent", is_flag=True, hidden=True)
def run(*, exit_with_parent: bool, **options: str | None) -> None:
    """Register this machine and send heartbeats until SIGTERM or SIGINT.

    Exits with 1 when another run of the agent has taken over the node.
    """
    with one_line_errors():
        settings, directory = load_configuration(options, writing=True)
        with identity.lock_directory(directory):
            work = run_agent(settings, directory)
            run_coroutine(settings, run_until_stopped(work, with_parent=exit_with_parent))


@main.command()
@add_connection_options
@click.option("--json", "as_json", is_flag=True, help="Print the node as JSON.")
def status(*, as_json: bool, **options: str | None) -> None:
    """Print the registry's record of this node. Exits with 0 when it is ONLINE, else with 1."""
    with one_line_errors():
        settings, directory = load_configuration(options, writing=False)
        node_id = identity.read_node_id(directory)
        if node_id is None:
            fail(f"{directory} contains no node id: run node-agent bootstrap first")
        node = run_coroutine(settings, fetch_node(settings, directory, node_id))
        if node is None:
            fail(f"the registry at {settings.registry_url} has no node {node_id!r}")
    print_node(node, as_json=as_json)
    sys.exit(0 if node.status == "ONLINE" else 1)


def check_node_id(node_id: str | None, directory: Path) -> None:
    """Raise BadSettingError for an invalid id, or one that differs from the directory's."""
    if node_id is None:
        return
    if not identity.is_node_id(node_id):
        raise BadSettingError("--node-id", f"expected a node id, not {node_id!r}")
    current_node_id = identity.read_node_id(directory)
    if current_node_id not in {None, node_id}:
        raise BadSettingError(
            "--node-id", f"{directory / identity.NODE_ID} already contains {current_node_id!r}"
        )


async def register_and_send_heartbeat(
    settings: AgentSettings, directory: Path, node_id: str | None
) -> Node:
    """Register, send one heartbeat and return the node with the status of that heartbeat."""
    async with open_runner(settings, directory) as runner:
        runner.node_id = node_id
        runner.max_retry_seconds = BOOTSTRAP_RETRY_SECONDS
        registration = await runner.register()
        heartbeat = await runner.send_heartbeat()
    update = {"status": heartbeat.status, "last_heartbeat": heartbeat.received_at}
    return registration.node.model_copy(update=update)


async def run_agent(settings: AgentSettings, directory: Path) -> None:
    async with open_runner(settings, directory) as runner:
        await runner.run()


async def fetch_node(
    settings: AgentSettings, directory: Path, node_id: str
) -> NodeWithReason | None:
    try:
        node_token = read_node_token(directory)
    except StateError:
        if settings.token is None:
            raise
        node_token = None  # its file belongs to the agent's user
    token = node_token.token if node_token else settings.token
    bearer = token.get_secret_value() if token else None
    async with aclosing(
        HttpTransport(settings.registry_url, bearer, load_tls(settings))
    ) as transport:
        data = await transport.execute(documents.NODE_STATUS, {"nodeId": node_id}, NodeStatusData)
    return data.node


@asynccontextmanager
async def open_runner(settings: AgentSettings, directory: Path) -> AsyncIterator[Runner]:
    """Yield a runner that has not sent anything yet."""
    clock = Clock()
    schedule = Schedule(clock)
    credentials = Credentials(directory, settings.token, clock.uniform)
    url, tls = settings.registry_url, load_tls(settings)

    def connect(bearer: str | None) -> RegistryTransport:
        if settings.transport == "http":
            return HttpTransport(url, bearer, tls=tls)
        return FallbackTransport(url, bearer, tls, clock=clock, on_pace=schedule.apply_pace)

    machine = observe_machine()
    boot_id = identity.prepare_boot_id(directory, machine.hostname, machine.local_ip)
    discovery = Discovery(settings.services, clock=clock)
    async with (
        aclosing(AuthenticatedTransport(credentials, connect)) as transport,
        discovery.watch(),
    ):
        yield Runner(
            transport,
            credentials,
            schedule,
            directory,
            settings,
            boot_id,
            clock=clock,
            meter=Meter(gpus=lambda: discovery.gpus.current_gpus),
            observe_machine=lambda: observe_machine(discovery.collect_capabilities()),
        )


def load_tls(settings: AgentSettings) -> TlsConfig:
    """Return the TLS files of the settings.

    Raises: BadSettingError: a file cannot be used.
    """
    files = settings.collect_tls_files()
    tls = TlsConfig(**files)
    try:
        tls.load_context(settings.registry_url)
    except UnusableFileError as error:
        [name, *_] = (name for name, path in files.items() if path == error.path)
        raise BadSettingError(f"{PREFIX}{name.upper()}", str(error)) from None
    return tls


def run_coroutine(settings: AgentSettings, coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the coroutine's result; exit with one line when a request to the registry fails."""
    try:
        return asyncio.run(coroutine)
    except RegistryUnavailableError as error:
        fail(f"no usable answer from the registry at {settings.registry_url}: {error}")
    except RequestRejectedError as error:
        fail(f"the registry at {settings.registry_url} rejected the request: {error}")


def print_node(node: Node, *, as_json: bool) -> None:
    if as_json:
        document = node.model_dump(mode="json", by_alias=True)
        echo(json.dumps(document, separators=(",", ":")))  # in ASCII
        return
    for name, value in node.model_dump(mode="json").items():
        text = ", ".join(value) if isinstance(value, list) else value
        echo(f"{name.replace('_', ' '):<16}{escape(text or '-')}")
