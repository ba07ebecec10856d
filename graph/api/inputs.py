"""The input types of the API; `checked` turns each into what `db` takes, or raises BadInput."""

from datetime import datetime
from typing import Any

import strawberry

from db.core.errors import BadInput
from db.registry.heartbeats import HeartbeatReport
from db.registry.profiles import ProfileContent
from db.registry.registration import Registration
from graph.api.enums import NodeRole, NodeType, ProfileType, ReportedStatus
from graph.api.fields import field, optional
from graph.api.profile_schema import parse_content
from graph.api.scalars import JSON, IPAddress
from graph.core import validation
from graph.core.validation import MAX_GPUS, MAX_METRICS_BYTES


@strawberry.input(description="The load and memory of one GPU.")
class GpuMetricsInput:
    name: str = field("The GPU's name, as its driver gives it.")
    utilization_percent: float | None = optional("How busy it is, 0 to 100.")
    memory_total_mb: float | None = optional("Its memory, in MB.")
    memory_free_mb: float | None = optional("Its free memory, in MB.")
    temperature_celsius: float | None = optional("Its temperature.")

    def to_document(self, path: str) -> dict[str, Any]:
        return {
            "name": validation.check_name(f"{path}.name", self.name),
            "utilization_percent": validation.check_number(
                f"{path}.utilizationPercent", self.utilization_percent
            ),
            "memory_total_mb": validation.check_number(
                f"{path}.memoryTotalMb", self.memory_total_mb
            ),
            "memory_free_mb": validation.check_number(f"{path}.memoryFreeMb", self.memory_free_mb),
            "temperature_celsius": validation.check_number(
                f"{path}.temperatureCelsius", self.temperature_celsius, minimum=-300
            ),
        }


@strawberry.input(description="What an agent measured on its node; at most 16 KiB as JSON.")
class NodeMetricsInput:
    cpu_percent: float | None = optional("How busy the processors are, 0 to 100.")
    memory_percent: float | None = optional("How much of the memory is in use, 0 to 100.")
    memory_available_mb: float | None = optional("Memory that programs can still have, in MB.")
    disk_percent: float | None = optional("How full the disk is, 0 to 100.")
    load_average: float | None = optional("Runnable processes, averaged over the last minute.")
    gpus: list[GpuMetricsInput] | None = optional("The GPUs of the node, at most 64.")
    extra: JSON | None = optional("A JSON object with whatever else there is to say.")

    def to_document(self, path: str) -> dict[str, Any]:
        """The document that the log keeps; what was not measured is left out."""
        gpus = self.gpus or []
        if len(gpus) > MAX_GPUS:
            raise BadInput(f"{path}.gpus", f"must be at most {MAX_GPUS}")
        document = {
            "cpu_percent": validation.check_number(f"{path}.cpuPercent", self.cpu_percent),
            "memory_percent": validation.check_number(f"{path}.memoryPercent", self.memory_percent),
            "memory_available_mb": validation.check_number(
                f"{path}.memoryAvailableMb", self.memory_available_mb
            ),
            "disk_percent": validation.check_number(f"{path}.diskPercent", self.disk_percent),
            "load_average": validation.check_number(f"{path}.loadAverage", self.load_average),
            "gpus": [gpu.to_document(f"{path}.gpus[{i}]") for i, gpu in enumerate(gpus)] or None,
            "extra": validation.check_optional(
                validation.check_document, f"{path}.extra", self.extra, MAX_METRICS_BYTES
            ),
        }
        return validation.check_document(
            path, {k: v for k, v in document.items() if v is not None}, MAX_METRICS_BYTES
        )


@strawberry.input(description="A profile that a node brings with it.")
class ProfileInput:
    name: str = field("Unique within the node.")
    type: ProfileType = field("What it sets up.")
    config: JSON = field("Its settings: a JSON object of at most 64 KiB.")
    enabled: bool = strawberry.field(description="Whether it is in use.", default=True)

    def to_content(self, path: str) -> ProfileContent:
        return parse_content(path, self.name, self.type, self.config, enabled=self.enabled)


@strawberry.input(
    description="What an agent says of its node. On a later registration, what is absent stays as"
    " it was, and what is given replaces it."
)
class RegisterNodeInput:
    node_id: str | None = optional("Absent: made from the hostname, and unique.")
    name: str | None = optional("A name for people. Absent: the node id.")
    role: NodeRole = field("What the node is for.")
    type: NodeType = field("What the node does in the network.")
    labels: list[str] | None = optional("At most 64 words of at most 63 characters.")
    ip_address: IPAddress | None = optional("Its public address.")
    local_ip: IPAddress | None = optional("Its address on its own network.")
    hostname: str | None = optional("What the machine calls itself.")
    capabilities: JSON | None = optional("What it can do: a JSON object of at most 64 KiB.")
    metadata: JSON | None = optional("What else there is to say: a JSON object of at most 64 KiB.")
    profiles: list[ProfileInput] | None = optional(
        "Profiles to make or to replace, by their names; others stay."
    )
    boot_id: str = field(
        "Names one run of the agent: a new one at every start."
        " It tells a restart from two machines that claim one id."
    )
    replaces_boot_id: str | None = optional(
        "The bootId of the run before, kept by the agent. From the same hostname and localIp it"
        " proves a restart, which need not wait until the former run has fallen silent."
    )

    def to_registration(self) -> Registration:
        path = "input"
        return Registration(
            role=self.role,
            type=self.type,
            boot_id=validation.check_identifier(f"{path}.bootId", self.boot_id),
            node_id=validation.check_optional(
                validation.check_identifier, f"{path}.nodeId", self.node_id
            ),
            name=validation.check_optional(validation.check_name, f"{path}.name", self.name),
            labels=validation.check_optional(
                validation.check_labels, f"{path}.labels", self.labels
            ),
            ip_address=self.ip_address,
            local_ip=self.local_ip,
            hostname=validation.check_optional(
                validation.check_name, f"{path}.hostname", self.hostname
            ),
            capabilities=validation.check_optional(
                validation.check_document, f"{path}.capabilities", self.capabilities
            ),
            metadata=validation.check_optional(
                validation.check_document, f"{path}.metadata", self.metadata
            ),
            profiles=_require_distinct_names(
                f"{path}.profiles",
                [
                    profile.to_content(f"{path}.profiles[{i}]")
                    for i, profile in enumerate(self.profiles or [])
                ],
            ),
            replaces_boot_id=validation.check_optional(
                validation.check_identifier, f"{path}.replacesBootId", self.replaces_boot_id
            ),
        )


@strawberry.input(description="One heartbeat.")
class RecordHeartbeatInput:
    node_id: str = field("The node that sends it.")
    boot_id: str = field("The bootId of the registration this run of the agent made.")
    sequence: int = field(
        "Counts up within one bootId;"
        " a heartbeat that is not newer than the last one changes nothing."
    )
    status: ReportedStatus = strawberry.field(
        description="What the node says of itself.", default=ReportedStatus.ONLINE
    )
    metrics: NodeMetricsInput | None = optional("What was measured.")

    def to_report(self, path: str, actor: str) -> HeartbeatReport:
        if self.sequence < 0:
            raise BadInput(f"{path}.sequence", "must not be negative")
        return HeartbeatReport(
            node_id=validation.check_identifier(f"{path}.nodeId", self.node_id),
            boot_id=validation.check_identifier(f"{path}.bootId", self.boot_id),
            sequence=self.sequence,
            degraded=self.status is ReportedStatus.DEGRADED,
            metrics=None if self.metrics is None else self.metrics.to_document(f"{path}.metrics"),
            actor=actor,
        )


@strawberry.input(description="Begins or ends a node's maintenance.")
class SetMaintenanceInput:
    node_id: str = field("The node.")
    enabled: bool = field("True begins maintenance, false ends it.")
    note: str | None = optional("Why; it stands in the change log.")
    until: datetime | None = optional("When it ends by itself. Absent: when an operator ends it.")


@strawberry.input(description="Removes a node; its history stays.")
class DeregisterNodeInput:
    node_id: str = field("The node.")
    note: str | None = optional("Why; it stands in the change log.")


def _require_distinct_names(
    path: str, contents: list[ProfileContent]
) -> tuple[ProfileContent, ...]:
    if len(contents) > validation.MAX_PROFILES:
        raise BadInput(path, f"must be at most {validation.MAX_PROFILES}")
    if len({content.name for content in contents}) < len(contents):
        raise BadInput(path, "must have different names")
    return tuple(contents)
