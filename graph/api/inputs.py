"""The input types of the mutations.

Each `to_` method returns the type that `db` takes, or raises BadInput for a value out of bounds.
"""

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


@strawberry.input(description="The utilization and memory of one GPU.")
class GpuMetricsInput:
    name: str = field("The GPU's name as reported by its driver.")
    utilization_percent: float | None = optional("The GPU's utilization in percent, 0 to 100.")
    memory_total_mb: float | None = optional("The GPU's total memory in MB.")
    memory_free_mb: float | None = optional("The GPU's free memory in MB.")
    temperature_celsius: float | None = optional("The GPU's temperature in degrees Celsius.")

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


@strawberry.input(
    description="The metrics that an agent measured on its node, at most 16 KiB as JSON."
)
class NodeMetricsInput:
    cpu_percent: float | None = optional("The CPU utilization in percent, 0 to 100.")
    memory_percent: float | None = optional("The percentage of the memory in use, 0 to 100.")
    memory_available_mb: float | None = optional("The memory available to programs, in MB.")
    disk_percent: float | None = optional("The percentage of the disk in use, 0 to 100.")
    load_average: float | None = optional(
        "The number of runnable processes, averaged over the last minute."
    )
    gpus: list[GpuMetricsInput] | None = optional("The GPUs of the node, at most 64.")
    extra: JSON | None = optional("Other measurements, as a JSON object.")

    def to_document(self, path: str) -> dict[str, Any]:
        """Return the document for the heartbeat log, without the metrics that were not measured."""
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


@strawberry.input(description="A profile that a node registers with.")
class ProfileInput:
    name: str = field("The name of the profile, unique within the node.")
    type: ProfileType = field("The kind of thing that the profile configures.")
    config: JSON = field("The settings: a JSON object of at most 64 KiB.")
    enabled: bool = strawberry.field(description="Whether the profile is in use.", default=True)

    def to_content(self, path: str) -> ProfileContent:
        return parse_content(path, self.name, self.type, self.config, enabled=self.enabled)


@strawberry.input(
    description="The description of a node by its agent. A later registration keeps what is"
    " absent and replaces what is given."
)
class RegisterNodeInput:
    node_id: str | None = optional(
        "The id of the node. If absent, the registry derives a unique id from the hostname."
    )
    name: str | None = optional("A display name. If absent, the node id.")
    role: NodeRole = field("The purpose of the node.")
    type: NodeType = field("The function of the node in the network.")
    labels: list[str] | None = optional(
        "Labels to select the node by: at most 64, of at most 63 characters each."
    )
    ip_address: IPAddress | None = optional("The node's public address.")
    local_ip: IPAddress | None = optional("The node's address on its local network.")
    hostname: str | None = optional("The hostname of the machine.")
    capabilities: JSON | None = optional(
        "The capabilities of the node: a JSON object of at most 64 KiB."
    )
    metadata: JSON | None = optional("Other facts about the node: a JSON object of at most 64 KiB.")
    profiles: list[ProfileInput] | None = optional(
        "Profiles to create or to replace, by name. Other profiles stay."
    )
    boot_id: str = field(
        "Identifies one run of the agent; each start of the agent uses a new one. It"
        " distinguishes a restart from two machines that claim the same node id."
    )
    replaces_boot_id: str | None = optional(
        "The bootId of the previous run, as kept by the agent. Together with the same hostname"
        " and localIp it proves a restart, so that the agent need not wait until the previous run"
        " counts as silent."
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


@strawberry.input(description="A heartbeat of a node.")
class RecordHeartbeatInput:
    node_id: str = field("The id of the node that sends the heartbeat.")
    boot_id: str = field("The bootId with which this run of the agent registered the node.")
    sequence: int = field(
        "A number that increases with each heartbeat of one bootId. A heartbeat whose number is"
        " not greater than the last one changes nothing."
    )
    status: ReportedStatus = strawberry.field(
        description="The status that the node reports.", default=ReportedStatus.ONLINE
    )
    metrics: NodeMetricsInput | None = optional("The metrics that the node measured.")

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


@strawberry.input(description="Starts or ends the maintenance of a node.")
class SetMaintenanceInput:
    node_id: str = field("The id of the node.")
    enabled: bool = field("True starts maintenance, false ends it.")
    note: str | None = optional("The reason, which is recorded in the change log.")
    until: datetime | None = optional(
        "When maintenance ends automatically. If absent, an operator has to end it."
    )


@strawberry.input(description="Removes a node and keeps its history.")
class DeregisterNodeInput:
    node_id: str = field("The id of the node.")
    note: str | None = optional("The reason, which is recorded in the change log.")


def _require_distinct_names(
    path: str, contents: list[ProfileContent]
) -> tuple[ProfileContent, ...]:
    if len(contents) > validation.MAX_PROFILES:
        raise BadInput(path, f"must be at most {validation.MAX_PROFILES}")
    if len({content.name for content in contents}) < len(contents):
        raise BadInput(path, "must have different names")
    return tuple(contents)
