"""The agent's command line with a registry that tries to fool the terminal."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from agent.identity import NODE_ID
from tests.support.scripted_registry import NODE, make_reply, run_scripted_registry

HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\u2066\u200b\x9b31m\rstatus          ONLINE\n"
REASON = {"statusReason": "REGISTERED", "statusSince": "2026-11-23T16:00:00+00:00"}


async def run_status(url: str, state: str, *options: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "status", "--registry-url", url, "--state-dir", state),
        *options,
        env={**os.environ, "NODE_AGENT_TOKEN": "nrk_x"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


@pytest.mark.parametrize("options", [(), ("--json",)])
async def test_status_shows_what_a_registry_sent_without_obeying_it(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / NODE_ID).write_text("node-1\n")
    hostile = dict.fromkeys(("name", "role", "type", "hostname", "ipAddress", "status"), HOSTILE)
    node = {**NODE, **REASON, **hostile, "labels": [HOSTILE]}
    code = {"message": HOSTILE, "extensions": {"code": HOSTILE}}
    answers = (
        make_reply({"data": {"node": node}}),
        make_reply({"data": None, "errors": [code]}),
        make_reply(HOSTILE.encode(), status="500 x"),
    )
    async with run_scripted_registry(*answers) as registry:
        for shown in ("gnp.exe", "gnp.exe", "no usable answer"):
            exit_code, output = await run_status(registry.url, str(tmp_path), *options)
            assert exit_code == 1
            assert shown in output
            assert all(line.isprintable() for line in output.split("\n")), json.dumps(output)
            assert "status          ONLINE" not in output.split("\n")
