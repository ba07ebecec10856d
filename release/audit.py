"""Asking pip-audit about the locked versions, and saying so when its database did not answer.

pip-audit itself ends with 0 for a package that the database does not know, as a mirror may not
know any, and with 1 for both a vulnerability and a database that it cannot reach.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

NOTHING_KNOWN, VULNERABLE, NOT_CHECKED = 0, 1, 75
"""Exit statuses; the last is EX_TEMPFAIL of sysexits.h: it may pass later, or elsewhere."""

_MAX_REASON_CHARACTERS = 300


class NotCheckedError(Exception):
    """pip-audit came to no result; the message says why, in one line."""


def audit(pip_audit: str, lock_files: Sequence[str]) -> int:
    """Print a line for each vulnerability, and one if not all was checked; return the status."""
    packages: list[dict[str, Any]] = []
    failures: list[str] = []
    for file in lock_files:
        try:
            packages += _ask(pip_audit, file)
        except NotCheckedError as error:
            failures.append(f"{file}: {error}")
    names = {package["name"] for package in packages}
    skipped = {package["name"] for package in packages if "skip_reason" in package}
    failures += [package["skip_reason"] for package in packages if "skip_reason" in package]
    vulnerabilities = {line for package in packages for line in _describe_vulnerabilities(package)}
    for line in sorted(vulnerabilities):
        click.echo(line)
    if failures:
        checked = f"{len(names - skipped)} packages were checked"
        click.echo(f"The database of vulnerabilities was not reached: {checked}; {failures[0]}")
    if vulnerabilities:
        return VULNERABLE
    if failures:
        return NOT_CHECKED
    click.echo(f"No known vulnerabilities in {len(names)} packages.")
    return NOTHING_KNOWN


def _ask(pip_audit: str, lock_file: str) -> list[dict[str, Any]]:
    """Return what pip-audit says of each package of one file: it takes no package twice."""
    options = ["--require-hashes", "--disable-pip", "--format=json", "--progress-spinner=off"]
    done = subprocess.run(  # noqa: S603  # the Makefile's own arguments
        [pip_audit, *options, f"--requirement={lock_file}"],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:  # what it prints on a failure is no JSON
        lines = done.stderr.splitlines() or [f"pip-audit ended with {done.returncode}"]
        raise NotCheckedError(lines[-1][:_MAX_REASON_CHARACTERS]) from None
    if not packages:
        raise NotCheckedError(f"pip-audit found no package in {lock_file}")
    return packages


def _describe_vulnerabilities(package: dict[str, Any]) -> Iterator[str]:
    for found in package.get("vulns", ()):
        fixed = ", ".join(found["fix_versions"]) or "no version"
        yield f"Vulnerable: {package['name']} {package['version']}: {found['id']}, fixed in {fixed}"


if __name__ == "__main__":
    sys.exit(audit(sys.argv[1], sys.argv[2:]))
