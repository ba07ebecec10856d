"""Writing the SBOM that a wheel carries in `.dist-info/sboms/` (PEP 770): CycloneDX 1.6 as JSON.

It has what the lock files of the runtime pin, and the JavaScript that the wheel contains. The same
lock files and licences make the same bytes: there is no time in it, and the serial number is
derived from the content.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from release.lock_files import (
    LOCK_FILES,
    ROOT,
    Package,
    get_name,
    list_runtime_requirements,
    read_lock,
    read_project,
)

PATH = LOCK_FILES / "dagi-node-registry.cdx.json"
RUNTIME_LOCKS = ("run", "server")

_STATIC = ROOT / "graph" / "transport" / "static" / "graphiql"
_VENDORED = {
    ("graphiql", "3.9.0"): ["graphiql.min.js", "graphiql.min.css"],
    ("react", "18.3.1"): ["react.production.min.js"],
    ("react-dom", "18.3.1"): ["react-dom.production.min.js"],
}
"""The files of npm's packages that the wheel contains, by name and version."""

_LICENCE_CLASSIFIER = "License :: OSI Approved :: "


def render() -> str:
    """Return the SBOM as JSON, which ends with a line break."""
    project = read_project()["project"]
    components = sorted(
        (*_list_locked_components(), *_list_vendored_components()), key=lambda each: each["purl"]
    )
    subject = _describe("application", "pypi", project["name"], project["version"])
    direct = {get_name(requirement) for requirement in list_runtime_requirements()}
    content = {
        "version": 1,
        "metadata": {"lifecycles": [{"phase": "pre-build"}], "component": subject},
        "components": components,
        "dependencies": [
            {
                "ref": subject["bom-ref"],
                "dependsOn": [
                    component["bom-ref"]
                    for component in components
                    if component["name"] in direct or component["purl"].startswith("pkg:npm/")
                ],
            }
        ],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(content))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}"}
    return json.dumps({**head, **content}, indent=1, ensure_ascii=False) + "\n"


def _list_locked_components() -> Iterator[dict[str, Any]]:
    packages: dict[str, Package] = {}
    for lock in RUNTIME_LOCKS:
        for name, package in read_lock(lock).items():
            if packages.setdefault(name, package) != package:
                raise ValueError(f"the lock files pin {name} differently")
    for package in packages.values():
        component = _describe("library", "pypi", package.name, package.version)
        component["hashes"] = _describe_hashes(package.hashes)
        if licences := _find_licences(package):
            component["licenses"] = licences
        if package.marker:
            marker = {"name": "dagi-node-registry:marker", "value": package.marker}
            component["properties"] = [marker]
        yield component


def _list_vendored_components() -> Iterator[dict[str, Any]]:
    for (name, version), files in _VENDORED.items():
        component = _describe("library", "npm", name, version)
        component["components"] = [
            {
                "type": "file",
                "name": (_STATIC / file).relative_to(ROOT).as_posix(),
                "hashes": _describe_hashes([_hash_file(_STATIC / file)]),
            }
            for file in files
        ]
        component["licenses"] = [{"expression": "MIT"}]
        yield component


def _describe(kind: str, registry: str, name: str, version: str) -> dict[str, Any]:
    purl = f"pkg:{registry}/{name}@{version}"
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _describe_hashes(hashes: Iterable[str]) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": content} for content in hashes]


def _hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _find_licences(package: Package) -> list[dict[str, Any]]:
    """Return what the installed package says of its licence; nothing if it is not installed."""
    try:
        fields = metadata(package.name)
    except PackageNotFoundError:
        return []
    if fields["Version"] != package.version:
        return []
    if expressions := fields.get_all("License-Expression"):
        return [{"expression": expression} for expression in expressions]
    names = [
        classifier.removeprefix(_LICENCE_CLASSIFIER)
        for classifier in fields.get_all("Classifier", [])
        if classifier.startswith(_LICENCE_CLASSIFIER)
    ] or [line for text in fields.get_all("License", []) for line in text.splitlines() if line][:1]
    return [{"license": {"name": name}} for name in names]


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
