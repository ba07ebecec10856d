"""What a node measured, hour by hour: the types of Node.metricsHistory."""

from datetime import datetime
from typing import Any, Self

import strawberry
from sqlalchemy import Row

from db.core.tables import MEASURES
from graph.api.fields import field


@strawberry.type(description="What the heartbeats of an hour said of one measure.")
class MetricRange:
    min: float = field("The least.")
    avg: float = field("The mean of those heartbeats that carried it.")
    max: float = field("The most.")

    @classmethod
    def from_row(cls, row: Row[Any], measure: str) -> Self | None:
        least, mean, most = (
            getattr(row, f"{measure}_{statistic}") for statistic in ("min", "avg", "max")
        )
        return None if least is None else cls(min=least, avg=mean, max=most)


@strawberry.type(
    description="A node's metrics over one hour of UTC. What no heartbeat of it carried is null."
)
class MetricsHour:
    starts_at: datetime = field("When the hour began.")
    heartbeats: int = field("How many heartbeats were received in it.")
    cpu_percent: MetricRange | None = field("How busy the processors were, 0 to 100.")
    memory_percent: MetricRange | None = field("How much of the memory was in use, 0 to 100.")
    memory_available_mb: MetricRange | None = field("Memory that programs could have, in MB.")
    disk_percent: MetricRange | None = field("How full the disk was, 0 to 100.")
    load_average: MetricRange | None = field("Runnable processes, each averaged over a minute.")
    gpu_utilization_percent: MetricRange | None = field(
        "How busy the GPUs were, 0 to 100: of each heartbeat the mean of all."
    )
    gpu_memory_free_mb: MetricRange | None = field(
        "Free memory on one GPU, in MB: of each heartbeat that of the GPU with the most."
    )
    gpu_temperature_celsius: MetricRange | None = field(
        "How hot the GPUs were: of each heartbeat the hottest."
    )

    @classmethod
    def from_row(cls, row: Row[Any]) -> Self:
        return cls(
            starts_at=row.hour,
            heartbeats=row.heartbeats,
            **{measure: MetricRange.from_row(row, measure) for measure in MEASURES},
        )
