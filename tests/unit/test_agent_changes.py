"""Changes of the machine while its agent runs: each is reported once, and not too often."""

from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from structlog.testing import capture_logs

from agent.machine import Machine
from agent.runner import REPORT_SECONDS, Runner
from tests.support.fake_time import Time
from tests.support.scripted_registry import (
    make_heartbeat_reply,
    make_registration_reply,
    make_rejection,
    make_runner,
    run_scripted_registry,
)

MACHINE = Machine("gpu-1", "192.168.1.7", None, {"models": [], "cpuCount": 8}, {})
WITH_MODEL = replace(MACHINE, capabilities={"models": ["llama3:8b"], "cpuCount": 8})
ELSEWHERE = replace(MACHINE, local_ip="192.168.1.8")


def set_machine(run: Runner, machine: Machine) -> None:
    run.observe_machine = lambda: machine


async def test_an_unchanged_machine_is_reported_once(tmp_path: Path) -> None:
    async with run_scripted_registry(make_registration_reply(), make_heartbeat_reply()) as registry:
        time = Time()
        run = make_runner(registry, tmp_path, time)
        set_machine(run, MACHINE)
        async with aclosing(run.transport):
            await run.register()
            time.now += 10 * REPORT_SECONDS
            await run.report_changes()
            await run.send_heartbeat()
    assert len(registry.inputs("registerNode")) == 1


async def test_a_change_is_reported_with_the_same_boot_id_and_not_too_often(tmp_path: Path) -> None:
    async with run_scripted_registry(
        make_registration_reply(), make_registration_reply(), make_registration_reply()
    ) as registry:
        time = Time()
        run = make_runner(registry, tmp_path, time)
        set_machine(run, MACHINE)
        async with aclosing(run.transport):
            await run.register()
            set_machine(run, WITH_MODEL)
            await run.report_changes()
            assert len(registry.inputs("registerNode")) == 1
            time.now += REPORT_SECONDS
            await run.report_changes()
            set_machine(run, ELSEWHERE)
            time.now += REPORT_SECONDS - 1
            await run.report_changes()
            assert len(registry.inputs("registerNode")) == 2
            time.now += 1
            await run.report_changes()
        registrations = registry.inputs("registerNode")
    assert [registration["capabilities"]["models"] for registration in registrations] == [
        [],
        ["llama3:8b"],
        [],
    ]
    assert registrations[2]["localIp"] == "192.168.1.8"
    assert {registration["bootId"] for registration in registrations} == {run.boot_id}
    assert {registration.get("nodeId") for registration in registrations[1:]} == {"node-1"}
    assert not [registration for registration in registrations if "replacesBootId" in registration]


async def test_a_change_whose_report_fails_is_reported_later(tmp_path: Path) -> None:
    busy = make_rejection("RATE_LIMITED", retryable=True)
    async with run_scripted_registry(
        make_registration_reply(), None, busy, make_registration_reply()
    ) as registry:
        time = Time()
        run = make_runner(registry, tmp_path, time)
        set_machine(run, MACHINE)
        async with aclosing(run.transport):
            await run.register()
            set_machine(run, WITH_MODEL)
            with capture_logs() as logs:
                for _ in range(5):
                    time.now += REPORT_SECONDS
                    await run.report_changes()
    assert len(registry.inputs("registerNode")) == 4
    assert time.now == 5 * REPORT_SECONDS  # the runner has not waited
    # Debug entries are ignored: another test may have set the log level.
    events = [entry["event"] for entry in logs if entry["log_level"] != "debug"]
    assert events == ["node_update.failed", "node.updated"]
