"""Fixtures that keep PostgreSQL out of the unit tests."""

import pytest


@pytest.fixture(scope="session")
def postgres() -> None:
    """Fail the test: one that needs a database belongs to `tests/db` or a later tier."""
    pytest.fail("a unit test asks for PostgreSQL")


@pytest.fixture(scope="session")
def cluster_template() -> None:
    """Fail the test, as `postgres` does."""
    pytest.fail("a unit test asks for PostgreSQL")
