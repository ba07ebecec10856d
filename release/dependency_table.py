"""Keeping the locked versions and the bounds in docs/dependencies.md up to date."""

from collections.abc import Iterator, Sequence
from itertools import takewhile

from release.lock_files import ROOT, get_name, list_requirements, read_lock

PATH = ROOT / "docs" / "dependencies.md"
HEADER = "| library | locked | bound | why it |"


def refresh(text: str) -> str:
    """Return the text with the locked version and the bound of each library in its tables.

    Raises ValueError: its tables do not have exactly the direct dependencies.
    """
    locked = {**read_lock("audit"), **read_lock("dev")}
    bounds = {get_name(requirement): requirement.specifier for requirement in list_requirements()}
    lines = text.splitlines()
    rows = {_split(lines[number])[0]: number for number in _find_rows(lines)}
    if difference := sorted(rows.keys() ^ bounds.keys()):
        raise ValueError(f"docs/dependencies.md and pyproject.toml differ in {difference}")
    for name, number in rows.items():
        bound = ",".join(sorted(map(str, bounds[name]), reverse=True))
        cells = [name, locked[name].version, f"`{bound}`" if bound else "none"]
        lines[number] = f"| {' | '.join([*cells, _split(lines[number])[3]])} |"
    return "\n".join(lines) + "\n"


def _find_rows(lines: Sequence[str]) -> Iterator[int]:
    """Yield the number of each line that is a row of a table of libraries."""
    for header in (number for number, line in enumerate(lines) if line == HEADER):
        yield from takewhile(lambda number: lines[number], range(header + 2, len(lines)))


def _split(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


if __name__ == "__main__":
    PATH.write_text(refresh(PATH.read_text(encoding="utf-8")), encoding="utf-8")
