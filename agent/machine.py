"""The facts of this machine: its name, addresses and capabilities. Reading them sends no packet."""

import ipaddress
import os
import platform
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import psutil

MIB = 1024 * 1024
# Documentation addresses (RFC 5737, RFC 3849): the route to them is the route to the internet.
OUTSIDE_TARGETS = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Machine:
    hostname: str
    local_ip: str | None
    """The address of the interface with the route outside, private or public."""
    ip_address: str | None
    """A public address, if an interface of this machine has one."""
    capabilities: dict[str, Any]
    """os, arch, cpuCount and memoryTotalMb, and the discovered models, services and devices."""
    metadata: dict[str, Any]


def observe_machine(discovered: Mapping[str, Any] | None = None) -> Machine:
    """Return the facts of this machine.

    `discovered` holds the capabilities `models`, `services` and `devices`.
    """
    local_ip, ip_address = choose_addresses(find_outgoing_address(), list_interface_addresses())
    return Machine(
        hostname=socket.gethostname(),
        local_ip=local_ip,
        ip_address=ip_address,
        capabilities={
            "os": platform.system().lower(),
            "arch": platform.machine().lower(),
            "cpuCount": os.cpu_count(),
            "memoryTotalMb": psutil.virtual_memory().total // MIB,
            **({"models": [], "services": [], "devices": []} if discovered is None else discovered),
        },
        metadata={
            "agentVersion": version("dagi-node-registry"),
            "pythonVersion": platform.python_version(),
        },
    )


def find_outgoing_address() -> Address | None:
    """Return the source address that the kernel would use for a packet to the internet.

    None without a route. Connecting a UDP socket only looks up the route.
    """
    for family, target in OUTSIDE_TARGETS:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                address = _parse_usable_address(probe.getsockname()[0])
        except OSError:
            continue
        if address:
            return address
    return None


def list_interface_addresses() -> list[Address]:
    """Return the addresses of the interfaces that are up, without loopback and link-local ones."""
    try:
        interfaces, stats = psutil.net_if_addrs(), psutil.net_if_stats()
    except (OSError, psutil.Error):
        return []
    return [
        address
        for name, entries in interfaces.items()
        if name in stats and stats[name].isup
        for entry in entries
        if entry.family in {socket.AF_INET, socket.AF_INET6}
        if (address := _parse_usable_address(entry.address))
    ]


def choose_addresses(
    outgoing: Address | None, interfaces: Iterable[Address]
) -> tuple[str | None, str | None]:
    """Return the local and the public address.

    The local one is `outgoing`, else the first private IPv4 address, else any. The public one is
    `outgoing` if that is public, else an IPv4 address, else any.
    """
    addresses = sorted(interfaces, key=lambda address: (address.version, not address.is_private))
    local = outgoing or next(iter(addresses), None)
    candidates = [outgoing, *addresses] if outgoing else addresses
    public = next((address for address in candidates if address.is_global), None)
    return (str(local) if local else None, str(public) if public else None)


def _parse_usable_address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if address.is_loopback or address.is_link_local or address.is_unspecified:
        return None
    return address
