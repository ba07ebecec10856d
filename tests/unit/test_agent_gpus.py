"""GPUs read by the tools of NVIDIA and Apple, from recorded output or NVML's own types."""

import json
import math
import plistlib
import threading
import time
from typing import Any

import pynvml
import pytest
from structlog.testing import capture_logs

from agent import apple, nvidia
from agent.apple import GIB, run_tool
from agent.gpu import Gpu
from agent.gpu_watch import STALE_SECONDS, GpuWatch, choose_reader
from agent.machine import MIB
from agent.metrics import Meter
from agent.nvidia import NvidiaGpuReader
from agent.pace import Clock
from tests.support.waiting import wait_until

# Recorded on a MacBook Pro with macOS 15, without the second display.
PROFILE = b"""{
  "SPDisplaysDataType" : [
    {
      "_name" : "Apple M4 Max",
      "spdisplays_mtlgpufamilysupport" : "spdisplays_metal3",
      "spdisplays_ndrvs" : [
        {
          "_name" : "Color LCD",
          "_spdisplays_displayID" : "1",
          "_spdisplays_pixels" : "3456 x 2234",
          "spdisplays_connection_type" : "spdisplays_internal",
          "spdisplays_main" : "spdisplays_yes",
          "spdisplays_online" : "spdisplays_yes"
        }
      ],
      "spdisplays_vendor" : "sppci_vendor_Apple",
      "sppci_bus" : "spdisplays_builtin",
      "sppci_cores" : "40",
      "sppci_device_type" : "spdisplays_gpu",
      "sppci_model" : "Apple M4 Max"
    }
  ]
}"""
REGISTRY = b"""<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "file://PropertyList-1.0.dtd">
<plist version="1.0"><array><dict>
  <key>IOClass</key><string>AGXAcceleratorG16X</string>
  <key>model</key><string>Apple M4 Max</string>
  <key>gpu-core-count</key><integer>40</integer>
  <key>PerformanceStatistics</key><dict>
    <key>Alloc system memory</key><integer>52967440384</integer>
    <key>Device Utilization %</key><integer>16</integer>
    <key>In use system memory</key><integer>2363801600</integer>
    <key>In use system memory (driver)</key><integer>0</integer>
    <key>Renderer Utilization %</key><integer>15</integer>
    <key>Tiler Utilization %</key><integer>10</integer>
    <key>recoveryCount</key><integer>0</integer>
  </dict>
</dict></array></plist>"""


def test_machine_without_a_driver_has_no_gpu_and_logs_no_warning() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        pass
    else:
        pynvml.nvmlShutdown()
        pytest.skip("this machine has NVIDIA's driver")
    gpus = NvidiaGpuReader()
    with capture_logs() as logs:
        assert gpus.read() == []
        assert gpus.read() == []  # each reading tries again: the driver may have been installed
        gpus.close()
    assert logs == []


def test_nvidia_gpu_is_built_from_nvml_structures() -> None:
    memory = pynvml.c_nvmlMemory_t(total=20475 * MIB, free=16000 * MIB, used=4475 * MIB)
    utilization = pynvml.c_nvmlUtilization_t(gpu=37, memory=12)
    gpu = nvidia.build_gpu(b"NVIDIA RTX 4000 Ada", memory, utilization, 54)
    assert gpu.to_device() == {"kind": "gpu", "name": "NVIDIA RTX 4000 Ada", "memoryMb": 20475}
    assert gpu.to_metrics() == {
        "name": "NVIDIA RTX 4000 Ada",
        "utilizationPercent": 37.0,
        "memoryTotalMb": 20475.0,
        "memoryFreeMb": 16000.0,
        "temperatureCelsius": 54.0,
    }


def test_missing_gpu_metric_is_omitted() -> None:
    gpu = nvidia.build_gpu("NVIDIA GB10", None, None, None)
    assert gpu.to_device() == {"kind": "gpu", "name": "NVIDIA GB10"}
    assert gpu.to_metrics() == {"name": "NVIDIA GB10"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_gpu_metric_that_the_registry_would_reject_is_omitted(value: float) -> None:
    assert Gpu("A", temperature_celsius=value).to_metrics() == {"name": "A"}


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [(" RTX\t4000\x00 ", "RTX 4000"), ("", "GPU"), ("\x07", "GPU"), ("x" * 300, "x" * 255)],
)
def test_gpu_name_is_cleaned_for_the_registry(name: str, cleaned: str) -> None:
    assert Gpu(name).to_metrics()["name"] == cleaned


def test_gpu_of_an_apple_chip_shares_the_memory_of_its_machine() -> None:
    [profile_gpu] = apple.parse_profile(PROFILE)
    assert profile_gpu == Gpu("Apple M4 Max", cores=40)
    gpu = apple.add_figures(profile_gpu, REGISTRY, total=128 * GIB, free=100 * GIB)
    assert gpu.to_device() == {
        "kind": "gpu",
        "name": "Apple M4 Max",
        "memoryMb": 96 * 1024,
        "cores": 40,
    }
    assert gpu.to_metrics() == {
        "name": "Apple M4 Max",
        "utilizationPercent": 16.0,
        "memoryTotalMb": 96.0 * 1024,
        "memoryFreeMb": round(96 * 1024 - 2363801600 / MIB, 2),
    }


def test_free_memory_of_an_apple_gpu_is_at_most_that_of_the_machine() -> None:
    gpu = apple.add_figures(Gpu("Apple M1"), b"", total=16 * GIB, free=1 * GIB)
    assert (gpu.memory_free_mb, gpu.utilization_percent) == (1024, None)
    assert gpu.memory_total_mb == pytest.approx(16 * 1024 * 2 / 3)


@pytest.mark.parametrize(
    "output",
    [b"", b"{", b"[]", b"{}", b'{"SPDisplaysDataType": 1}', b'{"SPDisplaysDataType": [1, {}]}'],
)
def test_unreadable_profile_has_no_gpu(output: bytes) -> None:
    assert apple.parse_profile(output) == []


@pytest.mark.parametrize(
    "output", [b"", b"<plist", plistlib.dumps([]), plistlib.dumps({}), plistlib.dumps([{"a": 1}])]
)
def test_unreadable_io_registry_has_no_metrics(output: bytes) -> None:
    gpu = apple.add_figures(Gpu("Apple M1"), output, total=64 * GIB, free=64 * GIB)
    assert gpu.utilization_percent is None


def test_two_gpus_are_reported_without_metrics_that_may_belong_to_the_other() -> None:
    intel = {"sppci_model": "Intel Iris Pro"}
    amd = {"sppci_model": "AMD Radeon Pro 560", "sppci_cores": ""}
    gpus = apple.parse_profile(json.dumps({"SPDisplaysDataType": [intel, amd]}).encode())
    assert [gpu.to_metrics() for gpu in gpus] == [
        {"name": "Intel Iris Pro"},
        {"name": "AMD Radeon Pro 560"},
    ]


def test_missing_failing_or_hanging_tool_returns_no_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(apple, "TOOL_TIMEOUT_SECONDS", 0.1)
    assert run_tool(("/bin/echo", "good")) == b"good\n"
    assert run_tool(("/no/such/tool",)) == b""
    assert run_tool(("/bin/sh", "-c", "echo bad; exit 1")) == b""
    assert run_tool(("/bin/sleep", "60")) == b""


async def test_hanging_driver_removes_only_the_gpu_metrics() -> None:
    now = 0.0
    released = threading.Event()
    gpu = Gpu("A", utilization_percent=50.0)

    def read() -> list[Gpu]:
        if watch.last_gpus:
            released.wait(60)
        return [gpu]

    watch = GpuWatch(read, Clock(now=lambda: now))
    await watch.start()
    meter = Meter(gpus=lambda: watch.current_gpus)
    assert meter.read()["gpus"] == [{"name": "A", "utilizationPercent": 50.0}]
    now += STALE_SECONDS
    assert meter.read()["gpus"] == []
    assert watch.last_gpus == [gpu]
    watch.stop()
    released.set()


async def test_start_does_not_wait_for_a_hanging_driver() -> None:
    released = threading.Event()

    def read() -> list[Gpu]:
        released.wait(60)
        return []

    watch = GpuWatch(read)
    started_at = time.monotonic()
    await watch.start(timeout_seconds=0.05)
    assert time.monotonic() - started_at < 5
    assert watch.current_gpus == watch.last_gpus == []
    watch.stop()
    released.set()


async def test_failing_reading_is_logged_as_a_warning_once_and_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.gpu_watch.READ_SECONDS", 0.001)
    readings: list[Any] = [OSError("odd"), OSError("odd"), [Gpu("A")]]

    def read() -> list[Gpu]:
        reading = readings.pop(0) if readings else [Gpu("A")]
        if isinstance(reading, Exception):
            raise reading
        return list(reading)

    with capture_logs() as logs:
        watch = GpuWatch(read)
        await watch.start()
        await wait_until(lambda: watch.last_gpus)
    watch.stop()
    assert [entry["log_level"] for entry in logs] == ["warning", "debug"]


def test_this_machine_is_read_without_an_error() -> None:
    assert isinstance(choose_reader()(), list)
