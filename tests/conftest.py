"""Fixtures of all tests. Those that need PostgreSQL are in `tests.support`."""

import gc
import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs
from structlog.types import EventDict

pytest_plugins = [
    "tests.support.authority",
    "tests.support.clusters",
    "tests.support.databases",
    "tests.support.issuer",
    "tests.support.live_server",
    "tests.support.provisioning",
    "tests.support.trace_receiver",
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
    """Collect the log of the test, which fails on errors that it does not remove."""
    with capture_logs([merge_contextvars]) as events:
        yield events
    levels = {"error", "critical"}
    assert not [event for event in events if event["log_level"] in levels]
    assert not [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
