"""What this machine is: its name, its addresses and what it can do. Sends no packet."""

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
    """The address of the interface that leads outside, whether private or public."""
    ip_address: str | None
    """A public address, when an interface of this machine has one."""
    capabilities: dict[str, Any]
    """os, arch, cpuCount, memoryTotalMb, and what was found around it."""
    metadata: dict[str, Any]


def observe_machine(discovered: Mapping[str, Any] | None = None) -> Machine:
    """`found` are further capabilities: models, services and devices."""
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
    """The source address that the kernel would use for a packet to the internet.

    Connecting a UDP socket only looks up the route.
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
    """Those of the interfaces that are up; neither loopback nor link-local."""
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
    """Local address and public address.

    Without a route outside the local one is the first private IPv4, else any. Of several public
    ones that of the outgoing interface is taken, then IPv4.
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
