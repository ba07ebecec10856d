"""The agent of this machine, which the server runs in development."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import structlog

from db.core.restart_limit import RestartLimit

log = structlog.get_logger()

_MAX_SHORT_RUNS = 8
_RESTART_SECONDS = 5.0
_LONGEST_DELAY_SECONDS = 300.0
_STOP_SECONDS = 5


async def run_dev_agent(registry_url: str, data_dir: Path) -> None:
    """Run the agent and restart it whenever it ends; it keeps its node id in `data_dir`.

    Return when it has ended soon too often. Its standard input is a pipe, which closes even if this
    process is killed.
    """
    limit = RestartLimit(
        _MAX_SHORT_RUNS,
        shortest_delay_seconds=_RESTART_SECONDS,
        longest_delay_seconds=_LONGEST_DELAY_SECONDS,
    )
    clock = asyncio.get_running_loop().time
    state_dir = data_dir / "agent"
    state_dir.mkdir(parents=True, exist_ok=True)
    environment = {
        "NODE_AGENT_REGISTRY_URL": registry_url,
        "NODE_AGENT_ROLE": "development",
        "NODE_AGENT_STATE_DIR": str(state_dir),
        **os.environ,
    }
    delay: float | None = 0.0
    while delay is not None:
        await asyncio.sleep(delay)
        started_at = clock()
        agent = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "agent", "run", "--exit-with-parent"),
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            # Ctrl-C in a terminal signals the process group, but this process stops the agent.
            start_new_session=True,
        )
        try:
            status = await agent.wait()
        finally:
            if agent.returncode is None:
                await _stop(agent)
        delay = limit.record_run(clock() - started_at)
        log.warning("dev_agent.ended", status=status, restart_in_seconds=delay)


async def _stop(agent: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        agent.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await agent.wait()
        except TimeoutError:
            agent.kill()
            await agent.wait()
