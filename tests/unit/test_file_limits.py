"""Connections need open files, of which a system gives few until it is asked."""

import resource
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from graph.server.file_limits import raise_open_file_limit


@pytest.fixture
def most() -> Iterator[int]:
    """The limit that cannot be raised, beside one that is low."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_low_limit_of_open_files_is_raised(most: int) -> None:
    with capture_logs() as logs:
        raise_open_file_limit(2000)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (3000, most)
    assert logs == []


def test_a_limit_that_is_high_enough_stays(most: int) -> None:
    raise_open_file_limit(10)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1024, most)


def test_more_than_the_system_gives_is_told(most: int) -> None:
    if most == resource.RLIM_INFINITY:
        pytest.skip("this system gives any number")
    with capture_logs() as logs:
        raise_open_file_limit(most + 1)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)
    assert [entry["event"] for entry in logs] == ["open_files.limited"]
