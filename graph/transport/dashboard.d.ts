/**
 * The types of the dashboard's JavaScript that more than one module uses, for `make check` alone:
 * the objects of the API as `documents.js` selects them (see schema.graphql), and events.
 */

export type NodeRole = "PRODUCTION" | "DEVELOPMENT" | "BACKUP";
export type NodeType = "ROUTER" | "GATEWAY" | "WORKER";
export type NodeStatus = "ONLINE" | "DEGRADED" | "OFFLINE" | "MAINTENANCE";
export type StatusReason =
  | "REGISTERED"
  | "HEARTBEAT"
  | "SELF_REPORTED"
  | "MISSED_HEARTBEATS"
  | "FLAPPING"
  | "MAINTENANCE_STARTED"
  | "MAINTENANCE_ENDED"
  | "DEREGISTERED"
  | "SEEDED";
export type ProfileType = "LLM" | "SERVICE" | "CAPABILITY";

/** An ISO 8601 instant with an offset. */
export type DateTime = string;
/** A position in the change log: a whole number as a decimal string. */
export type Revision = string;
export type Json = null | boolean | number | string | Json[] | JsonObject;
export interface JsonObject {
  [key: string]: Json;
}

/** The number of nodes, in total and by status in lower case. */
export type NodeCounts = Record<"total" | Lowercase<NodeStatus>, number>;

export interface Registry {
  version: string;
  environment: string;
  mode: "NORMAL" | "PROTECTED";
  modeReason: string | null;
  modeSince: DateTime;
  revision: Revision;
}

/** A node as the fleet's table shows it. */
export interface NodeSummary {
  nodeId: string;
  name: string;
  role: NodeRole;
  type: NodeType;
  labels: string[];
  hostname: string | null;
  status: NodeStatus;
  statusReason: StatusReason;
  statusSince: DateTime;
}

/** A node as its own page shows it. */
export interface NodeDetails extends NodeSummary {
  ipAddress: string | null;
  localIp: string | null;
  lastHeartbeat: DateTime | null;
  registeredAt: DateTime;
  updatedAt: DateTime;
  capabilities: JsonObject;
  metadata: JsonObject;
  profiles: NodeProfile[];
  effectiveProfiles: EffectiveProfile[];
  /** The availability over each period, 0 to 1. */
  day: number;
  week: number;
  month: number;
  statusChanges: { nodes: StatusChange[]; pageInfo: { hasNextPage: boolean } };
}

export interface NodeProfile {
  name: string;
  type: ProfileType;
  config: JsonObject;
  enabled: boolean;
  version: number;
  updatedAt: DateTime;
}

export interface EffectiveProfile {
  name: string;
  type: ProfileType;
  config: JsonObject;
  fromRole: boolean;
  fromNode: boolean;
}

export interface StatusChange {
  revision: Revision;
  nodeId: string;
  previousStatus: NodeStatus | null;
  status: NodeStatus;
  reason: StatusReason;
  note: string | null;
  actor: string;
  changedAt: DateTime;
}

export type NodeStatusEvent =
  /** `node` is null when the node was removed. */
  | { __typename: "NodeStatusChanged"; change: StatusChange; node: NodeSummary | null }
  | { __typename: "Bookmark"; revision: Revision }
  | { __typename: "ResyncRequired"; revision: Revision; reason: string };

export interface GpuMetrics {
  name: string;
  utilizationPercent: number | null;
  memoryTotalMb: number | null;
  memoryFreeMb: number | null;
  temperatureCelsius: number | null;
}

export interface Heartbeat {
  receivedAt: DateTime;
  metrics: {
    cpuPercent: number | null;
    memoryPercent: number | null;
    diskPercent: number | null;
    gpus: GpuMetrics[];
  };
}

export interface MetricRange {
  min: number;
  avg: number;
  max: number;
}

export interface MetricsHour {
  startsAt: DateTime;
  cpuPercent: MetricRange | null;
  memoryPercent: MetricRange | null;
  diskPercent: MetricRange | null;
  gpuUtilizationPercent: MetricRange | null;
  gpuMemoryFreeMb: MetricRange | null;
  gpuTemperatureCelsius: MetricRange | null;
}

export interface NodePageOfList {
  nodes: { nodes: NodeSummary[]; pageInfo: { hasNextPage: boolean; endCursor: string | null }; revision: Revision };
}

/** An error of a GraphQL response; `extensions` also holds facts of the error by their names. */
export interface GraphQLError {
  message: string;
  extensions?: { code?: string; retryable?: boolean; requestId?: string; [fact: string]: Json | undefined };
}

export interface GraphQLResponse {
  data?: unknown;
  errors?: GraphQLError[];
}

/** The text of a GraphQL operation, and the types of its data and variables (only the checker sees them). */
export type Operation<Data, Variables> = string & { __types?: { data: Data; variables: Variables } };

/** An EventTarget whose events have the types that `Events` gives by their names. */
export interface TypedEventTarget<Events> {
  addEventListener<Name extends keyof Events & string>(name: Name, listener: (event: Events[Name]) => void): void;
  removeEventListener<Name extends keyof Events & string>(name: Name, listener: (event: Events[Name]) => void): void;
  dispatchEvent(event: Event): boolean;
}
