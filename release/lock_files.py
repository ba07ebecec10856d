"""Reading the lock files and the direct dependencies that pyproject.toml declares."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK_FILES = ROOT / "requirements"

_PACKAGE = re.compile(
    r"^(?P<name>[a-z0-9._-]+)==(?P<version>[^\s;\\]+)(?: ; (?P<marker>[^\\\n]+?))?"
    r"(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Package:
    """A locked package: `hashes` are the SHA-256 of the files of this version that pip accepts."""

    name: str
    version: str
    marker: str | None
    hashes: tuple[str, ...]


def read_lock(name: str) -> dict[str, Package]:
    """Return the packages of a lock file by their names. Raises ValueError: it has other lines."""
    text = (LOCK_FILES / f"{name}.lock").read_text(encoding="utf-8")
    if rest := _PACKAGE.sub("", text).split():
        raise ValueError(f"{name}.lock has something else than packages with hashes: {rest[0]}")
    return {
        match["name"]: Package(
            match["name"],
            match["version"],
            match["marker"],
            tuple(re.findall(r"sha256:(\w+)", match["hashes"])),
        )
        for match in _PACKAGE.finditer(text)
    }


def read_project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def list_runtime_requirements() -> list[Requirement]:
    """Return the direct dependencies that a wheel has, with and without its extras."""
    project = read_project()["project"]
    extras = project["optional-dependencies"].values()
    return [*map(Requirement, chain(project["dependencies"], *extras))]


def list_requirements() -> list[Requirement]:
    """Return all direct dependencies, those for building, testing and auditing included."""
    return [*list_runtime_requirements(), *_list_group_requirements()]


def get_name(requirement: Requirement) -> str:
    """Return the name as lock files have it."""
    return str(canonicalize_name(requirement.name))


def _list_group_requirements() -> Iterator[Requirement]:
    for group in read_project()["dependency-groups"].values():
        yield from (Requirement(entry) for entry in group if isinstance(entry, str))
