"""A machine that changes while its agent runs: told once, and not too often."""

from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from structlog.testing import capture_logs

from agent.machine import Machine
from agent.runner import REPORT_SECONDS, Runner
from tests.support.fake_time import Time
from tests.support.scripted_registry import (
    make_recorded,
    make_refusal,
    make_registered,
    make_runner,
    run_scripted_registry,
)

MACHINE = Machine("gpu-1", "192.168.1.7", None, {"models": [], "cpuCount": 8}, {})
WITH_MODEL = replace(MACHINE, capabilities={"models": ["llama3:8b"], "cpuCount": 8})
ELSEWHERE = replace(MACHINE, local_ip="192.168.1.8")


def be(run: Runner, machine: Machine) -> None:
    run.observe_machine = lambda: machine


async def test_machine_that_stays_as_it_is_is_told_once(tmp_path: Path) -> None:
    async with run_scripted_registry(make_registered(), make_recorded()) as end:
        time = Time()
        run = make_runner(end, tmp_path, time)
        be(run, MACHINE)
        async with aclosing(run.transport):
            await run.register()
            time.now += 10 * REPORT_SECONDS
            await run.report_changes()
            await run.send_heartbeat()
    assert len(end.inputs("registerNode")) == 1


async def test_change_is_told_under_the_same_boot_id_and_not_too_often(tmp_path: Path) -> None:
    async with run_scripted_registry(
        make_registered(), make_registered(), make_registered()
    ) as end:
        time = Time()
        run = make_runner(end, tmp_path, time)
        be(run, MACHINE)
        async with aclosing(run.transport):
            await run.register()
            be(run, WITH_MODEL)
            await run.report_changes()
            assert len(end.inputs("registerNode")) == 1
            time.now += REPORT_SECONDS
            await run.report_changes()
            be(run, ELSEWHERE)
            time.now += REPORT_SECONDS - 1
            await run.report_changes()
            assert len(end.inputs("registerNode")) == 2
            time.now += 1
            await run.report_changes()
        told = end.inputs("registerNode")
    assert [said["capabilities"]["models"] for said in told] == [[], ["llama3:8b"], []]
    assert told[2]["localIp"] == "192.168.1.8"
    assert {said["bootId"] for said in told} == {run.boot_id}
    assert {said.get("nodeId") for said in told[1:]} == {"node-1"}
    assert not [said for said in told if "replacesBootId" in said]


async def test_change_that_cannot_be_told_now_is_told_later(tmp_path: Path) -> None:
    busy = make_refusal("RATE_LIMITED", retryable=True)
    async with run_scripted_registry(make_registered(), None, busy, make_registered()) as end:
        time = Time()
        run = make_runner(end, tmp_path, time)
        be(run, MACHINE)
        async with aclosing(run.transport):
            await run.register()
            be(run, WITH_MODEL)
            with capture_logs() as logs:
                for _ in range(5):
                    time.now += REPORT_SECONDS
                    await run.report_changes()
    assert len(end.inputs("registerNode")) == 4
    assert time.now == 5 * REPORT_SECONDS  # it has waited for nothing
    # Others are for those who look for faults: whether they are logged, a former test may decide.
    told = [entry["event"] for entry in logs if entry["log_level"] != "debug"]
    assert told == ["node_update.failed", "node.updated"]
