"""Debian's Chromium, driven by Playwright; it is installed where possible, else the test skips."""

import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, Page, async_playwright

APT_SECONDS = 240

# Chromium requests nothing but the opened page; as root it cannot use its sandbox.
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
    if path := shutil.which("chromium"):
        return path
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        pytest.skip("chromium is not on this machine, and only root could install it, by apt-get")
    install = [*APT, "install", "--no-install-recommends", "chromium"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (install, [*APT, "update"], install):
        try:
            process = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=APT_SECONDS,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            pytest.skip(f"chromium could not be installed within {APT_SECONDS} s")
        if path := shutil.which("chromium"):
            return path
    pytest.skip(f"chromium could not be installed: {process.stderr.strip()[-300:]}")


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
    """Return a list that collects the errors and policy violations that the browser reports.

    Rejected requests and network errors are ignored: they are not faults of the page.
    """
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda message: (
            complaints.append(message.text)
            if message.type in {"error", "warning"}
            and "net::ERR" not in message.text
            and not re.search("status of 40[13]", message.text)
            else None
        ),
    )
    return complaints
