"""What all tests share. The fixtures that need PostgreSQL are in `tests.support`."""

import asyncio
import gc
import logging
import os
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings
from sqlalchemy import URL, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs
from structlog.types import EventDict

from db import partitions
from db.database import Database
from db.embedded import embedded_postgres
from db.migrate import migrate
from graph.address import listen
from graph.app import running_services
from graph.server import configured
from graph.services import Services
from graph.settings import Settings
from tests.support.clusters import FAST, data_dir, made_cluster, new_data_dir, temporary_folder

pytest_plugins = [
    "tests.support.clusters",
    "tests.support.databases",
    "tests.support.live_server",
]

def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="more examples and larger fleets, for minutes"
    )


def pytest_configure() -> None:
    """A property is not wrong because the machine is busy.

    What is imported by now stays; else the collector takes an eighth of the tests' time.
    """
    settings.register_profile(
        "at leisure", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("at leisure")
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session")
def thorough(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--thorough"))


@pytest.fixture(autouse=True)
def _settings_of_the_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("NODE_REGISTRY_", "NODE_AGENT_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[EventDict]]:
    """What the registry logs during the test. Errors fail it, unless the test takes them out."""
    with capture_logs([merge_contextvars]) as events:
        yield events
    levels = {"error", "critical"}
    assert not [event for event in events if event["log_level"] in levels]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


