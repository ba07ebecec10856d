"""The agent of this machine, which the server runs in development."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import structlog

log = structlog.get_logger()

_RESTART_SECONDS = 5
_STOP_SECONDS = 5


async def run_dev_agent(registry_url: str, data_dir: Path) -> None:
    """Run the agent and restart it whenever it ends; it keeps its node id in `data_dir`.

    Its standard input is a pipe, which closes even if this process is killed.
    """
    state_dir = data_dir / "agent"
    state_dir.mkdir(parents=True, exist_ok=True)
    environment = {
        "NODE_AGENT_REGISTRY_URL": registry_url,
        "NODE_AGENT_ROLE": "development",
        "NODE_AGENT_STATE_DIR": str(state_dir),
        **os.environ,
    }
    while True:
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
        log.warning("dev_agent.ended", status=status, restart_in_seconds=_RESTART_SECONDS)
        await asyncio.sleep(_RESTART_SECONDS)


async def _stop(agent: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        agent.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await agent.wait()
        except TimeoutError:
            agent.kill()
            await agent.wait()
