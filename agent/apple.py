"""The GPU of an Apple chip, read with the tools that come with macOS."""

import json
import plistlib
import subprocess
from typing import Any
from xml.parsers.expat import ExpatError

import psutil

from agent.gpu import MAX_GPUS, Gpu
from agent.machine import MIB

TOOL_TIMEOUT_SECONDS = 10.0
PROFILER = ("/usr/sbin/system_profiler", "-json", "SPDisplaysDataType")
IOREG = ("/usr/sbin/ioreg", "-r", "-d", "1", "-w", "0", "-a", "-c", "IOAccelerator")
GIB = 1024 * MIB


class AppleGpuReader:
    """A reader of the machine's GPUs, for use by one thread.

    It looks for the GPUs until it has found some, and reads how busy they are each time.
    """

    def __init__(self) -> None:
        self._gpus: list[Gpu] = []

    def read(self) -> list[Gpu]:
        self._gpus = self._gpus or parse_profile(run_tool(PROFILER))
        if len(self._gpus) != 1:
            return self._gpus  # ioreg's figures do not name their GPU
        memory = psutil.virtual_memory()
        return [
            add_figures(self._gpus[0], run_tool(IOREG), total=memory.total, free=memory.available)
        ]


def run_tool(command: tuple[str, ...]) -> bytes:
    """Return what the command prints; empty when it is missing, fails or takes too long."""
    try:
        process = subprocess.run(  # noqa: S603  # the commands above
            command, capture_output=True, timeout=TOOL_TIMEOUT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return b""
    return process.stdout


def parse_profile(profile: bytes) -> list[Gpu]:
    """Return the GPUs in system_profiler's JSON, where a GPU's displays are nested in its entry."""
    try:
        entries = json.loads(profile)["SPDisplaysDataType"]
    except (ValueError, TypeError, KeyError):
        return []
    if not isinstance(entries, list):
        return []
    gpus = [_parse_entry(entry) for entry in entries if isinstance(entry, dict)]
    return [gpu for gpu in gpus if gpu is not None][:MAX_GPUS]


def _parse_entry(entry: dict[str, Any]) -> Gpu | None:
    name = entry.get("sppci_model") or entry.get("_name")
    if not isinstance(name, str):
        return None
    cores = str(entry.get("sppci_cores", ""))
    return Gpu(name, cores=int(cores) if cores.isdecimal() else None)


def add_figures(gpu: Gpu, ioreg_output: bytes, *, total: int, free: int) -> Gpu:
    """Return the GPU with the figures of ioreg's property list.

    `total` and `free` are the machine's memory in bytes, which the GPU shares: macOS lets it use
    three quarters of the total, or two thirds if that is less than 36 GB.
    """
    figures = _find_figures(ioreg_output)
    share = total * 3 / 4 if total >= 36 * GIB else total * 2 / 3
    used = figures.get("In use system memory", 0)
    return Gpu(
        gpu.name,
        memory_total_mb=share / MIB,
        memory_free_mb=min(max(share - used, 0), free) / MIB,
        utilization_percent=figures.get("Device Utilization %"),
        cores=gpu.cores,
    )


def _find_figures(ioreg_output: bytes) -> dict[str, float]:
    """Return the performance statistics of the first accelerator that has any."""
    try:
        entries = plistlib.loads(ioreg_output)
    except (plistlib.InvalidFileException, ExpatError, ValueError):
        return {}
    for entry in entries if isinstance(entries, list) else []:
        figures = entry.get("PerformanceStatistics") if isinstance(entry, dict) else None
        if isinstance(figures, dict):
            return {k: float(v) for k, v in figures.items() if isinstance(v, int | float)}
    return {}
