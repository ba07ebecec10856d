"""Every GraphQL document that the agent and the client send, parsed once.

The registry trusts these texts; `agent.trusted_documents` writes them down for it.
"""

from gql import gql

REGISTER_NODE = gql("""
mutation RegisterNode($input: RegisterNodeInput!) {
  registerNode(input: $input) {
    node { nodeId name role type labels hostname ipAddress localIp status lastHeartbeat }
    created
    nextHeartbeatInSeconds
    key
    keyExpiresAt
  }
}
""")

ROTATE_NODE_KEY = gql("""
mutation RotateNodeKey { rotateNodeKey { key keyExpiresAt } }
""")

RECORD_HEARTBEAT = gql("""
mutation RecordHeartbeat($input: RecordHeartbeatInput!) {
  recordHeartbeat(input: $input) { nodeId status receivedAt nextHeartbeatInSeconds }
}
""")

HEARTBEAT_PACE = gql("""
subscription HeartbeatPace { heartbeatPace { intervalSeconds } }
""")

NODE_STATUS = gql("""
query NodeStatus($nodeId: String!) {
  node(nodeId: $nodeId) {
    nodeId name role type labels hostname ipAddress localIp status lastHeartbeat
    statusReason statusSince
  }
}
""")

REVISION = gql("""
query Revision { registry { revision } }
""")

STATUS_CHANGES = gql("""
subscription StatusChanges($filter: NodeFilter, $after: Revision!) {
  nodeStatusChanges(filter: $filter, after: $after) {
    __typename
    ... on NodeStatusChanged {
      change { revision nodeId previousStatus status reason note actor changedAt }
      node {
        nodeId name role type labels hostname ipAddress localIp status lastHeartbeat
        statusReason statusSince
      }
    }
    ... on Bookmark { revision }
    ... on ResyncRequired { revision reason }
  }
}
""")

AVAILABILITY = gql("""
subscription Availability($require: NodeRequirements) {
  availableNodesChanges(require: $require) {
    __typename
    ... on AvailableNodesSnapshot { revision nodes { ...Usable } }
    ... on NodeBecameAvailable { revision node { ...Usable } }
    ... on NodeBecameUnavailable { revision nodeId reasons }
  }
}
fragment Usable on Node {
  nodeId name role type labels hostname ipAddress localIp status lastHeartbeat
  statusReason statusSince
}
""")

NODES = gql("""
query Nodes($filter: NodeFilter, $first: Int, $after: String) {
  nodes(filter: $filter, first: $first, after: $after) {
    nodes {
      nodeId name role type labels hostname ipAddress localIp status lastHeartbeat
      statusReason statusSince capabilities
    }
    pageInfo { hasNextPage endCursor }
  }
}
""")

NODE = gql("""
query OneNode($nodeId: String!) {
  node(nodeId: $nodeId) {
    nodeId name role type labels hostname ipAddress localIp status lastHeartbeat
    statusReason statusSince capabilities
  }
}
""")

AVAILABLE_NODES = gql("""
query AvailableNodes($require: NodeRequirements, $rank: NodeRanking!, $limit: Int) {
  availableNodes(require: $require, rank: $rank, limit: $limit) {
    candidates {
      score
      node {
        nodeId name role type labels hostname ipAddress localIp status lastHeartbeat
        statusReason statusSince capabilities
      }
    }
    excluded { nodeId reasons }
    revision
    observedAt
  }
}
""")
