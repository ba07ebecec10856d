"""docs/dependencies.md has the locked versions, and each lock file only packages with hashes."""

import re
from pathlib import Path

import pytest

from release import dependency_table
from release.lock_files import LOCK_FILES, read_lock

PAGE = dependency_table.PATH.read_text(encoding="utf-8")
LOCKS = sorted(path.stem for path in LOCK_FILES.glob("*.lock"))


def test_the_page_has_the_locked_version_and_the_bound_of_each_direct_dependency() -> None:
    assert dependency_table.refresh(PAGE) == PAGE, "run `make sbom`"


def test_an_outdated_version_on_the_page_is_replaced() -> None:
    row = re.search(r"^\| uvicorn \| (\S+) \| (\S+) \|", PAGE, re.MULTILINE)
    assert row is not None
    outdated = PAGE.replace(row[0], "| uvicorn | 0.1 | none |")
    assert outdated != PAGE
    assert dependency_table.refresh(outdated) == PAGE


@pytest.mark.parametrize("old", ["| uvicorn |", "| pip-audit |"])
def test_a_dependency_that_the_page_lacks_is_named(old: str) -> None:
    with pytest.raises(ValueError, match=old.strip("| ")):
        dependency_table.refresh(PAGE.replace(old, "| unknown |"))


@pytest.mark.parametrize("lock", LOCKS)
def test_each_package_of_a_lock_file_has_hashes(lock: str) -> None:
    packages = read_lock(lock)
    assert packages
    assert all(package.hashes for package in packages.values())


@pytest.mark.parametrize("lock", [lock for lock in LOCKS if lock not in {"audit", "dev"}])
def test_each_lock_file_pins_what_the_tests_run_with(lock: str) -> None:
    developed = read_lock("dev")
    packages = read_lock(lock)
    assert packages == {name: developed[name] for name in packages}


@pytest.mark.parametrize("path", sorted(LOCK_FILES.iterdir()), ids=lambda path: path.name)
def test_no_file_written_from_a_registry_has_an_address(path: Path) -> None:
    assert "://" not in path.read_text(encoding="utf-8")
