/** The GraphQL operations of the dashboard, with the types of their data and variables. */

/**
 * @import {
 *   DateTime, Heartbeat, MetricsHour, NodeCounts, NodeDetails, NodePageOfList, NodeStatus, NodeStatusEvent,
 *   Operation, Registry, Revision, StatusChange,
 * } from "../../dashboard"
 */

export const REGISTRY = /** @type {Operation<{ registry: Registry }, {}>} */ (`
query Registry {
  registry { version environment mode modeReason modeSince revision }
}`);

export const FIRST_PAGE = /** @type {Operation<NodePageOfList & { registry: Registry & { nodeCounts: NodeCounts } }, { first: number }>} */ (`
query FirstPage($first: Int!) {
  registry { version environment mode modeReason modeSince revision nodeCounts { total online degraded offline maintenance } }
  nodes(first: $first) {
    nodes { nodeId name role type labels hostname status statusReason statusSince }
    pageInfo { hasNextPage endCursor }
    revision
  }
}`);

export const NEXT_PAGE = /** @type {Operation<NodePageOfList, { first: number, after: string | null }>} */ (`
query NextPage($first: Int!, $after: String) {
  nodes(first: $first, after: $after) {
    nodes { nodeId name role type labels hostname status statusReason statusSince }
    pageInfo { hasNextPage endCursor }
    revision
  }
}`);

export const CHANGES = /** @type {Operation<{ nodeStatusChanges: NodeStatusEvent }, { after: Revision }>} */ (`
subscription Changes($after: Revision!) {
  nodeStatusChanges(after: $after) {
    __typename
    ... on NodeStatusChanged {
      change { revision nodeId previousStatus status reason note actor changedAt }
      node { nodeId name role type labels hostname status statusReason statusSince }
    }
    ... on Bookmark { revision }
    ... on ResyncRequired { revision reason }
  }
}`);

export const LATEST_CHANGES = /** @type {Operation<{ statusChanges: { nodes: StatusChange[] } }, { first: number }>} */ (`
query LatestChanges($first: Int!) {
  statusChanges(first: $first) { nodes { revision nodeId previousStatus status reason note actor changedAt } }
}`);

export const NODE = /** @type {Operation<{ node: NodeDetails | null }, { nodeId: string, day: DateTime, week: DateTime, month: DateTime }>} */ (`
query Node($nodeId: String!, $day: DateTime!, $week: DateTime!, $month: DateTime!) {
  node(nodeId: $nodeId) {
    nodeId name role type labels hostname ipAddress localIp status statusReason statusSince
    lastHeartbeat registeredAt updatedAt capabilities metadata
    profiles { name type config enabled version updatedAt }
    effectiveProfiles { name type config fromRole fromNode }
    day: availability(since: $day)
    week: availability(since: $week)
    month: availability(since: $month)
    statusChanges(first: 200) {
      nodes { revision nodeId previousStatus status reason note actor changedAt }
      pageInfo { hasNextPage }
    }
  }
}`);

export const HEARTBEATS = /** @type {Operation<{ node: { heartbeats: { nodes: Heartbeat[] } } | null }, { nodeId: string, first: number }>} */ (`
query Heartbeats($nodeId: String!, $first: Int!) {
  node(nodeId: $nodeId) {
    heartbeats(first: $first) {
      nodes {
        receivedAt
        metrics {
          cpuPercent memoryPercent diskPercent
          gpus { name utilizationPercent memoryTotalMb memoryFreeMb temperatureCelsius }
        }
      }
    }
  }
}`);

export const HEARTBEAT_STREAM = /** @type {Operation<{ heartbeats: Heartbeat }, { nodeId: string }>} */ (`
subscription HeartbeatStream($nodeId: String!) {
  heartbeats(nodeId: $nodeId) {
    receivedAt
    metrics {
      cpuPercent memoryPercent diskPercent
      gpus { name utilizationPercent memoryTotalMb memoryFreeMb temperatureCelsius }
    }
  }
}`);

export const HOURS = /** @type {Operation<{ node: { metricsHistory: { nodes: MetricsHour[] } } | null }, { nodeId: string, since: DateTime }>} */ (`
query Hours($nodeId: String!, $since: DateTime!) {
  node(nodeId: $nodeId) {
    metricsHistory(first: 1000, since: $since) {
      nodes {
        startsAt
        cpuPercent { min avg max }
        memoryPercent { min avg max }
        diskPercent { min avg max }
        gpuUtilizationPercent { min avg max }
        gpuMemoryFreeMb { min avg max }
        gpuTemperatureCelsius { min avg max }
      }
    }
  }
}`);

export const MAINTENANCE = /** @type {Operation<{ setMaintenance: { node: { status: NodeStatus } } }, { input: { nodeId: string, enabled: boolean, note: string | null, until: DateTime | null } }>} */ (`
mutation Maintenance($input: SetMaintenanceInput!) {
  setMaintenance(input: $input) { node { status } }
}`);
