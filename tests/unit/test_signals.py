"""Signals: which end a registry, and which do not."""

import asyncio
import os
import signal

import pytest

from graph.server.signals import handle_stop_signals


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "daemon"])
async def test_a_hangup_ends_what_runs_at_a_terminal_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: terminal)
    goes_on = False
    with handle_stop_signals():
        signal.raise_signal(signal.SIGHUP)
        await asyncio.sleep(0.05)
        goes_on = True
    assert goes_on is not terminal
