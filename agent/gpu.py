"""A GPU and its figures at one reading, and their forms in the API."""

import math
from dataclasses import dataclass
from typing import Any

MAX_GPUS = 64
MAX_NAME_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Gpu:
    """One reading of a GPU. A figure that its driver does not report is None. 1 MB is 1 MiB."""

    name: str
    memory_total_mb: float | None = None
    memory_free_mb: float | None = None
    utilization_percent: float | None = None
    temperature_celsius: float | None = None
    cores: int | None = None

    def to_device(self) -> dict[str, Any]:
        """Return the GPU as an entry of `capabilities.devices`."""
        memory = self.memory_total_mb
        device = {
            "kind": "gpu",
            "name": _clean_name(self.name),
            "memoryMb": None if memory is None else round(memory),
            "cores": self.cores,
        }
        return {name: value for name, value in device.items() if value is not None}

    def to_metrics(self) -> dict[str, Any]:
        """Return the GPU as a GpuMetricsInput, without figures that the registry would reject."""
        figures = {
            "utilizationPercent": self.utilization_percent,
            "memoryTotalMb": self.memory_total_mb,
            "memoryFreeMb": self.memory_free_mb,
            "temperatureCelsius": self.temperature_celsius,
        }
        usable = {
            name: round(value, 2)
            for name, value in figures.items()
            if value is not None and math.isfinite(value) and value >= 0
        }
        return {"name": _clean_name(self.name), **usable}


def _clean_name(name: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in name)
    return " ".join(printable.split())[:MAX_NAME_LENGTH].strip() or "GPU"
