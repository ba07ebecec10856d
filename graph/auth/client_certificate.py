"""The identities of nodes, read from their client certificates.

A certificate, signed by an authority that certifies nodes and nothing else, names a node by the
common name of its subject, which has at most 64 characters.
"""

import asyncio
import ssl
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any

from starlette.types import Scope

from db.core.enums import Role
from db.core.errors import BadInput
from db.core.identity import CERTIFICATE_PREFIX, Identity
from graph.core.validation import check_identifier

_PEER = "node_registry.tls_peer"


def find_certified_identity(scope: Scope) -> tuple[Identity, datetime] | None:
    """Return the agent identity of the node that the certificate names, and when it expires.

    None without a certificate, and for one that names no node.
    """
    peer: Mapping[str, Any] = scope.get("state", {}).get(_PEER, {})
    names = [
        value
        for relative_name in peer.get("subject", ())
        for kind, value in relative_name
        if kind == "commonName"
    ]
    try:
        [name] = names
        node_id = check_identifier("commonName", name)
    except (ValueError, BadInput):
        return None
    expires_at = datetime.fromtimestamp(ssl.cert_time_to_seconds(peer["notAfter"]), UTC)
    return Identity(f"{CERTIFICATE_PREFIX}{node_id}", Role.AGENT, frozenset({node_id})), expires_at


def store_peer_certificate(transport: asyncio.Transport, state: MutableMapping[str, Any]) -> None:
    """Store the certificate for `find_certified_identity`, since uvicorn does not pass it on."""
    peer = transport.get_extra_info("peercert")
    if peer:
        state[_PEER] = peer
