"""Debian's Chromium, driven by Playwright: installed where that is possible, else skipped."""

import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, Page, async_playwright

APT_SECONDS = 240

# It asks nobody but the page it is told to open; root has no sandbox.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

APT = ["apt-get", "--quiet", "--yes", "--option", "DPkg::Lock::Timeout=120"]


def find_chromium() -> str:
    """Return the path of Chromium; skip the test where it cannot be installed in time."""
    if found := shutil.which("chromium"):
        return found
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        pytest.skip("chromium is not on this machine, and only root could install it, by apt-get")
    install = [*APT, "install", "--no-install-recommends", "chromium"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (install, [*APT, "update"], install):
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=APT_SECONDS,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            pytest.skip(f"chromium could not be installed within {APT_SECONDS} s")
        if found := shutil.which("chromium"):
            return found
    pytest.skip(f"chromium could not be installed: {done.stderr.strip()[-300:]}")


@asynccontextmanager
async def run_chromium() -> AsyncIterator[Browser]:
    path = find_chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


def collect_complaints(page: Page) -> list[str]:
    """Collect what the browser reports from now on: errors, and what the page's policy forbids.

    That a registry refuses, or was killed and does not answer, is no fault of the page.
    """
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on(
        "console",
        lambda message: (
            found.append(message.text)
            if message.type in {"error", "warning"}
            and "net::ERR" not in message.text
            and not re.search("status of 40[13]", message.text)
            else None
        ),
    )
    return found
