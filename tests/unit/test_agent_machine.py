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
def test_addresses_are_the_way_outside_and_a_public_one_if_there_is_any(
    outgoing: str | None, interfaces: list[str], local: str | None, public: str | None
) -> None:
    way = ip_address(outgoing) if outgoing else None
    assert choose_addresses(way, map(ip_address, interfaces)) == (local, public)


def test_machine_describes_itself() -> None:
    machine = observe_machine()
    assert machine.hostname
    assert machine.capabilities["cpuCount"] >= 1
    assert machine.capabilities["memoryTotalMb"] > 0
    assert [machine.capabilities[key] for key in ("models", "services", "devices")] == [[], [], []]
    assert machine.metadata["agentVersion"]


def test_metrics_are_finite_and_of_the_schema() -> None:
    metrics = Meter().read()
    known = {"cpuPercent", "memoryPercent", "memoryAvailableMb", "diskPercent", "loadAverage"}
    assert set(metrics) <= known | {"gpus", "extra"}
    assert metrics["gpus"] == []
    assert all(math.isfinite(metrics[name]) for name in known & set(metrics))


def test_cpu_figure_is_left_out_until_it_covers_a_while() -> None:
    moments = iter([0.0, 0.05, 0.2])
    meter = Meter(lambda: next(moments))
    assert "cpuPercent" not in meter.read()
    assert 0 <= meter.read()["cpuPercent"] <= 100


def test_figure_that_the_machine_hides_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(_path: str) -> None:
        raise PermissionError("hidden")

    monkeypatch.setattr(psutil, "disk_usage", hidden)
    monkeypatch.setattr(psutil, "getloadavg", lambda: (math.nan, 0.0, 0.0))
    metrics = Meter().read()
    assert not {"diskPercent", "loadAverage"} & set(metrics)
    assert "memoryPercent" in metrics
