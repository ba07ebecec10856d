"""Every GraphQL document that the agent sends, parsed once.

`python -m agent.documents` prints them as the registry keeps them: it trusts them, and lets them
be asked for by their ids.
"""

import hashlib
import json

from gql import GraphQLRequest, gql

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


def text_of(document: GraphQLRequest) -> str:
    """As it is written above."""
    location = document.document.loc
    assert location is not None  # noqa: S101  # whatever was parsed has one
    return location.source.body


def id_of(document: GraphQLRequest) -> str:
    """What `documentId` says of it: https://github.com/graphql/graphql-over-http, appendix A."""
    return f"sha256:{hashlib.sha256(text_of(document).encode()).hexdigest()}"


def all_by_id() -> dict[str, str]:
    documents = [value for value in globals().values() if isinstance(value, GraphQLRequest)]
    return {id_of(document): text_of(document) for document in documents}


if __name__ == "__main__":
    print(json.dumps(all_by_id(), indent=2))  # noqa: T201  # for a file
