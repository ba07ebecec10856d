"""The current load of this machine as NodeMetricsInput. Reading it never blocks and never fails."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from agent.gpu import Gpu
from agent.machine import MIB

# psutil recommends at least this: over a shorter time the CPU figure is noise, or 0.0.
CPU_WINDOW_SECONDS = 0.1


class Meter:
    """A meter of the machine's load, for use by one thread: psutil keeps readings per thread.

    The CPU figure is the mean since the previous reading, and is left out if that is too recent.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        gpus: Callable[[], Sequence[Gpu]] = tuple,
    ) -> None:
        self._monotonic = monotonic
        self._gpus = gpus
        _read_figure(lambda: psutil.cpu_percent(interval=None))
        self._cpu_read_at = monotonic()

    def read(self) -> dict[str, Any]:
        """Return the figures, without those that this machine does not provide."""
        memory = psutil.virtual_memory
        figures = {
            "cpuPercent": self._read_cpu_percent(),
            "memoryPercent": _read_figure(lambda: memory().percent),
            "memoryAvailableMb": _read_figure(lambda: memory().available / MIB),
            "diskPercent": _read_figure(lambda: psutil.disk_usage("/").percent),
            "loadAverage": _read_figure(lambda: psutil.getloadavg()[0]),
        }
        metrics: dict[str, Any] = {k: v for k, v in figures.items() if v is not None}
        metrics["gpus"] = [gpu.to_metrics() for gpu in self._gpus()]
        uptime = _read_figure(lambda: time.time() - psutil.boot_time())
        metrics["extra"] = {} if uptime is None else {"uptimeSeconds": round(uptime)}
        return metrics

    def _read_cpu_percent(self) -> float | None:
        now = self._monotonic()
        if now - self._cpu_read_at < CPU_WINDOW_SECONDS:
            return None
        self._cpu_read_at = now
        return _read_figure(lambda: psutil.cpu_percent(interval=None))


def _read_figure(figure: Callable[[], float]) -> float | None:
    try:
        value = figure()
    except (OSError, psutil.Error, AttributeError, RuntimeError, ValueError):
        return None  # containers and some kernels hide parts of /proc; send the heartbeat anyway
    return round(value, 2) if math.isfinite(value) else None
