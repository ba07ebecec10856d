"""The SBOM: it lists exactly what the lock files pin, as CycloneDX has it, and is in the wheel."""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from release import sbom
from release.lock_files import read_lock
from tests.support.paths import ROOT

TEXT = sbom.PATH.read_text(encoding="utf-8")
SBOM: dict[str, Any] = json.loads(TEXT)


def list_components(parent: dict[str, Any] = SBOM) -> Iterator[dict[str, Any]]:
    for component in parent.get("components", ()):
        yield component
        yield from list_components(component)


def list_packages(registry: str) -> dict[str, dict[str, Any]]:
    return {
        component["name"]: component
        for component in SBOM["components"]
        if component["purl"].startswith(f"pkg:{registry}/")
    }


def test_it_is_what_the_lock_files_and_the_installed_licences_say() -> None:
    assert sbom.render() == TEXT, "run `make sbom`"


def test_it_lists_exactly_what_the_runtime_locks_pin() -> None:
    locked = {**read_lock("run"), **read_lock("server")}
    packages = list_packages("pypi")
    assert packages.keys() == locked.keys()
    for name, component in packages.items():
        assert component["version"] == locked[name].version
        assert component["purl"] == f"pkg:pypi/{name}@{locked[name].version}"
        assert [entry["content"] for entry in component["hashes"]] == [*locked[name].hashes]
        assert component["licenses"]


def test_two_lock_files_that_differ_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sbom, "RUNTIME_LOCKS", ("dev", "audit"))
    with pytest.raises(ValueError, match="differently"):
        sbom.render()


def test_it_lists_each_minified_file_of_others_in_the_wheel() -> None:
    files = {component["name"] for component in list_components() if component["type"] == "file"}
    assert files == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "graph").rglob("*.min.*")
    }


def test_the_stated_version_of_react_is_that_of_its_files() -> None:
    packages = list_packages("npm")
    folder = ROOT / "graph/transport/static/graphiql"
    for name in ("react", "react-dom"):
        assert packages[name]["version"] in (folder / f"{name}.production.min.js").read_text()


def test_it_has_the_required_parts_of_cyclonedx() -> None:
    assert SBOM["bomFormat"] == "CycloneDX"
    assert SBOM["specVersion"] == "1.6"
    assert SBOM["version"] == 1
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", SBOM["serialNumber"])
    assert SBOM["metadata"]["component"]["type"] == "application"
    for component in list_components():
        assert component["type"] in {"library", "file"}
        assert component["name"]
        for entry in component.get("hashes", ()):
            assert entry["alg"] == "SHA-256"
            assert re.fullmatch("[0-9a-f]{64}", entry["content"])
        licences = component.get("licenses", [])
        assert [*map(list, licences)] == [["expression"]] or all(
            list(licence) == ["license"] and list(licence["license"]) == ["name"]
            for licence in licences
        )


def test_its_references_are_unique_and_lead_to_components() -> None:
    subject = SBOM["metadata"]["component"]["bom-ref"]
    references = [subject, *(component["bom-ref"] for component in SBOM["components"])]
    assert len({*references}) == len(references)
    [graph] = SBOM["dependencies"]
    assert graph["ref"] == subject
    assert {*graph["dependsOn"]} <= {*references}
    assert any(reference.startswith("pkg:pypi/uvicorn@") for reference in graph["dependsOn"])


def test_it_has_no_time_and_its_serial_number_follows_from_its_content(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "timestamp" not in TEXT
    monkeypatch.setattr(sbom, "RUNTIME_LOCKS", ("server",))
    other = json.loads(sbom.render())
    assert other["serialNumber"] != SBOM["serialNumber"]


def test_the_wheel_contains_it(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    [path] = tmp_path.iterdir()
    with zipfile.ZipFile(path) as wheel:
        [name] = [name for name in wheel.namelist() if ".dist-info/sboms/" in name]
        assert wheel.read(name).decode() == TEXT
        assert not [name for name in wheel.namelist() if name.startswith("release/")]
