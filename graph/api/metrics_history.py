"""The hourly metrics of a node: the types of Node.metricsHistory."""

from datetime import datetime
from typing import Any, Self

import strawberry
from sqlalchemy import Row

from db.core.tables import MEASURES
from graph.api.fields import field


@strawberry.type(description="The range of one metric over the heartbeats of an hour.")
class MetricRange:
    min: float = field("The smallest value.")
    avg: float = field("The mean over the heartbeats that contain the metric.")
    max: float = field("The largest value.")

    @classmethod
    def from_row(cls, row: Row[Any], measure: str) -> Self | None:
        """Return the range of a measure, or None if no heartbeat of the hour contains it."""
        least, mean, most = (
            getattr(row, f"{measure}_{statistic}") for statistic in ("min", "avg", "max")
        )
        return None if least is None else cls(min=least, avg=mean, max=most)


@strawberry.type(
    description="The metrics of a node over one hour of UTC. A metric that no heartbeat contains"
    " is null."
)
class MetricsHour:
    starts_at: datetime = field("When the hour began.")
    heartbeats: int = field("The number of heartbeats received in the hour.")
    cpu_percent: MetricRange | None = field("The CPU utilization in percent, 0 to 100.")
    memory_percent: MetricRange | None = field("The percentage of the memory in use, 0 to 100.")
    memory_available_mb: MetricRange | None = field("The memory available to programs, in MB.")
    disk_percent: MetricRange | None = field("The percentage of the disk in use, 0 to 100.")
    load_average: MetricRange | None = field(
        "The number of runnable processes, each value averaged over a minute."
    )
    gpu_utilization_percent: MetricRange | None = field(
        "The GPU utilization in percent, 0 to 100: in each heartbeat, the mean of all GPUs."
    )
    gpu_memory_free_mb: MetricRange | None = field(
        "The free GPU memory in MB: in each heartbeat, that of the GPU with the most."
    )
    gpu_temperature_celsius: MetricRange | None = field(
        "The GPU temperature in degrees Celsius: in each heartbeat, that of the hottest GPU."
    )

    @classmethod
    def from_row(cls, row: Row[Any]) -> Self:
        return cls(
            starts_at=row.hour,
            heartbeats=row.heartbeats,
            **{measure: MetricRange.from_row(row, measure) for measure in MEASURES},
        )
