"""The limit on open files is raised for the connections of a server."""

import resource
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from graph.server.file_limits import raise_open_file_limit


@pytest.fixture
def hard_limit() -> Iterator[int]:
    """The hard limit, while the soft limit is low."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_low_limit_of_open_files_is_raised(hard_limit: int) -> None:
    with capture_logs() as logs:
        raise_open_file_limit(2000)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (3000, hard_limit)
    assert logs == []


def test_a_limit_that_is_high_enough_stays(hard_limit: int) -> None:
    raise_open_file_limit(10)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1024, hard_limit)


def test_a_limit_above_the_hard_limit_is_logged(hard_limit: int) -> None:
    if hard_limit == resource.RLIM_INFINITY:
        pytest.skip("this system has no hard limit")
    with capture_logs() as logs:
        raise_open_file_limit(hard_limit + 1)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard_limit, hard_limit)
    assert [entry["event"] for entry in logs] == ["open_files.limited"]
