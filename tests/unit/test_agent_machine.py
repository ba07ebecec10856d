import math
from ipaddress import ip_address

import psutil
import pytest

from agent.machine import choose_addresses, observe_machine
from agent.metrics import Meter


@pytest.mark.parametrize(
    ("outgoing", "interfaces", "local", "public"),
    [
        ("192.168.1.7", ["172.17.0.1", "192.168.1.7"], "192.168.1.7", None),
        ("144.76.224.179", ["10.0.0.2"], "144.76.224.179", "144.76.224.179"),
        ("10.0.0.2", ["10.0.0.2", "144.76.224.179"], "10.0.0.2", "144.76.224.179"),
        (None, ["2a01:4f8::2", "144.76.224.179", "10.0.0.2"], "10.0.0.2", "144.76.224.179"),
        (None, ["100.64.0.1"], "100.64.0.1", None),
        (None, [], None, None),
    ],
)
def test_addresses_are_the_outgoing_one_and_a_public_one_if_any(
    outgoing: str | None, interfaces: list[str], local: str | None, public: str | None
) -> None:
    address = ip_address(outgoing) if outgoing else None
    assert choose_addresses(address, map(ip_address, interfaces)) == (local, public)


def test_machine_describes_itself() -> None:
    machine = observe_machine()
    assert machine.hostname
    assert machine.capabilities["cpuCount"] >= 1
    assert machine.capabilities["memoryTotalMb"] > 0
    assert [machine.capabilities[key] for key in ("models", "services", "devices")] == [[], [], []]
    assert machine.metadata["agentVersion"]


def test_metrics_are_finite_and_part_of_the_schema() -> None:
    metrics = Meter().read()
    metric_names = {
        "cpuPercent",
        "memoryPercent",
        "memoryAvailableMb",
        "diskPercent",
        "loadAverage",
    }
    assert set(metrics) <= metric_names | {"gpus", "extra"}
    assert metrics["gpus"] == []
    assert all(math.isfinite(metrics[name]) for name in metric_names & set(metrics))


def test_cpu_percent_is_omitted_until_it_covers_a_minimum_time() -> None:
    times = iter([0.0, 0.05, 0.2])
    meter = Meter(lambda: next(times))
    assert "cpuPercent" not in meter.read()
    assert 0 <= meter.read()["cpuPercent"] <= 100


def test_metric_that_cannot_be_read_is_omitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: str) -> None:
        raise PermissionError("hidden")

    monkeypatch.setattr(psutil, "disk_usage", fail)
    monkeypatch.setattr(psutil, "getloadavg", lambda: (math.nan, 0.0, 0.0))
    metrics = Meter().read()
    assert not {"diskPercent", "loadAverage"} & set(metrics)
    assert "memoryPercent" in metrics
