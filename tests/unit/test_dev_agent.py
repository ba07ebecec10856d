"""The development agent is restarted, and given up without harm to the registry."""

import asyncio
from pathlib import Path

import pytest
from structlog.types import EventDict

from graph.live.background_tasks import open_background_tasks
from graph.server import dev_agent


async def test_an_agent_that_goes_on_ending_at_once_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[EventDict]
) -> None:
    monkeypatch.setattr("sys.executable", "false")
    monkeypatch.setattr(dev_agent, "_LONGEST_DELAY_SECONDS", 0.0)
    async with open_background_tasks() as tasks, asyncio.timeout(30):
        await dev_agent.run_dev_agent("http://127.0.0.1:1", tmp_path)
        tasks.check_all()
    assert [event["event"] for event in logged] == ["dev_agent.ended"] * 8
    assert logged[-1]["restart_in_seconds"] is None
