"""SIGHUP stops a registry at a terminal, and no other."""

import asyncio
import os
import signal

import pytest

from graph.server.signals import handle_stop_signals


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "daemon"])
async def test_a_hangup_stops_only_a_process_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: terminal)
    continued = False
    with handle_stop_signals():
        signal.raise_signal(signal.SIGHUP)
        await asyncio.sleep(0.05)
        continued = True
    assert continued is not terminal
