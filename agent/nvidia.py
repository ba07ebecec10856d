"""The GPUs of NVIDIA, read with the NVML of their driver. A faulty driver may block the caller."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pynvml

from agent.gpu import MAX_GPUS, Gpu
from agent.machine import MIB

T = TypeVar("T")


class NvidiaGpuReader:
    """A reader of the machine's GPUs, for use by one thread.

    NVML stays open between readings, because opening it may restart the driver.
    """

    def __init__(self) -> None:
        self._is_open = False

    def read(self) -> list[Gpu]:
        """Return the GPUs, without those that cannot be queried; empty without a driver."""
        try:
            if not self._is_open:
                pynvml.nvmlInit()
                self._is_open = True
            count = min(pynvml.nvmlDeviceGetCount(), MAX_GPUS)
        except pynvml.NVMLError:
            self.close()  # a driver that was replaced has to be opened again
            return []
        gpus = [_read_optional(partial(_read_gpu, index)) for index in range(count)]
        return [gpu for gpu in gpus if gpu is not None]

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            _read_optional(pynvml.nvmlShutdown)


def _read_gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    return build_gpu(
        pynvml.nvmlDeviceGetName(handle),
        _read_optional(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle)),
        _read_optional(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle)),
        _read_optional(
            lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
        ),
    )


def build_gpu(
    name: str | bytes, memory: Any | None, utilization: Any | None, temperature: float | None
) -> Gpu:
    """Return the GPU described by NVML's structures.

    `memory` is a c_nvmlMemory_t in bytes, `utilization` a c_nvmlUtilization_t in percent.
    """
    return Gpu(
        name.decode(errors="replace") if isinstance(name, bytes) else name,
        memory_total_mb=None if memory is None else memory.total / MIB,
        memory_free_mb=None if memory is None else memory.free / MIB,
        utilization_percent=None if utilization is None else float(utilization.gpu),
        temperature_celsius=None if temperature is None else float(temperature),
    )


def _read_optional(figure: Callable[[], T]) -> T | None:
    try:
        return figure()
    except pynvml.NVMLError:
        return None  # not every GPU supports every figure
