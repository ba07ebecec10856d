"""Keeps the unit tests free of PostgreSQL."""

import pytest


@pytest.fixture(scope="session")
def postgres() -> None:
    """Fail the test: one that needs a database belongs into `tests/db` or behind it."""
    pytest.fail("a unit test asks for PostgreSQL")


@pytest.fixture(scope="session")
def made_cluster() -> None:
    """Fail the test, as `postgres` does."""
    pytest.fail("a unit test asks for PostgreSQL")
