"""GraphQL operations that several tests send, and helpers that send them."""

import secrets
from typing import Any

from tests.support.live_server import LiveServer
from tests.support.waiting import wait_until

REGISTER = """
mutation Register($input: RegisterNodeInput!) {
  registerNode(input: $input) {
    created
    nextHeartbeatInSeconds
    node { id nodeId name role type labels status statusReason lastHeartbeat }
  }
}
"""

BEAT = """
mutation Beat($input: RecordHeartbeatInput!) {
  recordHeartbeat(input: $input) { nodeId status receivedAt nextHeartbeatInSeconds }
}
"""

MAINTENANCE = """
mutation Maintenance($input: SetMaintenanceInput!) {
  setMaintenance(input: $input) { node { nodeId status statusReason } }
}
"""

DEREGISTER = """
mutation Deregister($input: DeregisterNodeInput!) {
  deregisterNode(input: $input) { nodeId revision }
}
"""

CHANGES = """
subscription Changes($filter: NodeFilter, $after: Revision) {
  nodeStatusChanges(filter: $filter, after: $after) {
    __typename
    ... on NodeStatusChanged {
      change { revision nodeId previousStatus status reason note actor }
      node { nodeId status profiles { name } }
    }
    ... on Bookmark { revision }
    ... on ResyncRequired { revision reason }
  }
}
"""


async def register(server: LiveServer, node_id: str | None = None, **fields: Any) -> dict[str, Any]:
    """Register a production worker; `fields` override or add input fields."""
    node = {
        "nodeId": node_id or f"node-{secrets.token_hex(4)}",
        "role": "PRODUCTION",
        "type": "WORKER",
        "bootId": "boot-1",
        **fields,
    }
    data = await server.execute(REGISTER, input=node)
    payload: dict[str, Any] = data["registerNode"]
    return payload


async def beat(
    server: LiveServer, node_id: str, sequence: int, boot_id: str = "boot-1", **fields: Any
) -> dict[str, Any]:
    data = await server.execute(
        BEAT, input={"nodeId": node_id, "bootId": boot_id, "sequence": sequence, **fields}
    )
    payload: dict[str, Any] = data["recordHeartbeat"]
    return payload


async def wait_until_connected(server: LiveServer) -> None:
    """Wait until the server listens for changes."""
    await wait_until(lambda: server.services.change_feed.is_connected)


async def wait_for_revision(server: LiveServer, revision: int) -> None:
    """Wait until the server has read the change log up to the revision."""
    await wait_until(lambda: server.services.change_feed.revision >= revision)
