"""A router's requirements: which candidates meet them, and why the others do not; no I/O."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

import orjson

from db.core.enums import NodeRole, NodeStatus, NodeType
from db.core.jsonb_contains import contains
from db.registry.node_filter import LabelSelector
from db.routing.candidates import Candidate

_MAX_NAMES = 5
_MAX_TEXT = 120


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a candidate must meet; None requires nothing.

    No node meets an empty collection of roles, types or `any` labels, and a node that is OFFLINE or
    in MAINTENANCE meets no requirements at all.
    """

    roles: tuple[NodeRole, ...] | None = None
    types: tuple[NodeType, ...] | None = None
    labels: LabelSelector | None = None
    capabilities: str | None = None
    """JSON text that a node's capabilities must contain, by PostgreSQL's `@>`."""
    model: str | None = None
    min_memory_available_mb: float | None = None
    min_gpu_memory_free_mb: float | None = None
    max_cpu_percent: float | None = None
    include_degraded: bool = False


NO_REQUIREMENTS = Requirements()


def partition(
    requirements: Requirements, candidates: Iterable[Candidate]
) -> tuple[list[Candidate], list[Candidate]]:
    """Return the candidates that meet all requirements, and the others.

    This is faster than calling `list_unmet_requirements` for each.
    """
    tests = [check.met for check in _make_checks(requirements)]
    fit: list[Candidate] = []
    unfit: list[Candidate] = []
    for candidate in candidates:
        for met in tests:
            if not met(candidate):
                unfit.append(candidate)
                break
        else:
            fit.append(candidate)
    return fit, unfit


def list_unmet_requirements(requirements: Requirements, candidate: Candidate) -> list[str]:
    """Return a line of bounded length about each requirement that the candidate does not meet.

    The order is status, role, type, labels, model, memory, GPU memory, CPU, capabilities.
    """
    return [
        check.line(candidate) for check in _make_checks(requirements) if not check.met(candidate)
    ]


class _Check(NamedTuple):
    """One requirement: how it is tested, and what is said of a candidate that fails it."""

    met: Callable[[Candidate], bool]
    line: Callable[[Candidate], str]
    """Returns the line about a candidate that does not meet it."""


# Few, because each holds a parsed document. They serve callers that test one candidate at a time.
@lru_cache(maxsize=16)
def _make_checks(requirements: Requirements) -> tuple[_Check, ...]:
    checks = [_check_status(include_degraded=requirements.include_degraded)]
    if requirements.roles is not None:
        checks.append(_check_membership("role", requirements.roles))
    if requirements.types is not None:
        checks.append(_check_membership("type", requirements.types))
    if requirements.labels is not None:
        checks.extend(_check_labels(requirements.labels))
    if requirements.model is not None:
        checks.append(_check_model(requirements.model))
    if requirements.min_memory_available_mb is not None:
        checks.append(
            _check_minimum(
                requirements.min_memory_available_mb, "memory_available_mb", "of memory available"
            )
        )
    if requirements.min_gpu_memory_free_mb is not None:
        checks.append(
            _check_minimum(requirements.min_gpu_memory_free_mb, "gpu_memory_free_mb", "on one GPU")
        )
    if requirements.max_cpu_percent is not None:
        checks.append(_check_max_cpu(requirements.max_cpu_percent))
    if requirements.capabilities is not None:
        checks.append(_check_capabilities(requirements.capabilities))  # the slowest, so last
    return tuple(checks)


def _check_status(*, include_degraded: bool) -> _Check:
    usable = (NodeStatus.ONLINE, NodeStatus.DEGRADED) if include_degraded else (NodeStatus.ONLINE,)
    prepositions = {NodeStatus.MAINTENANCE: "in "}
    return _Check(
        lambda candidate: candidate.status in usable,
        lambda candidate: f"is {prepositions.get(candidate.status, '')}{candidate.status.name}",
    )


def _check_membership(attribute: str, accepted: Sequence[NodeRole] | Sequence[NodeType]) -> _Check:
    get_value = attrgetter(attribute)
    needed = " or ".join(dict.fromkeys(value.name for value in accepted)) or "one of none"
    return _Check(
        lambda candidate: get_value(candidate) in accepted,
        lambda candidate: f"has {attribute} {get_value(candidate).name}, needs {needed}",
    )


def _check_labels(selector: LabelSelector) -> Iterator[_Check]:
    has_all, has_any, has_none = selector.to_checks()
    if has_all is not None:
        required = frozenset(selector.all or ())
        yield _Check(
            has_all,
            lambda candidate: f"lacks {_name_labels(required - candidate.labels)}",
        )
    if has_any is not None:
        some = frozenset(selector.any or ())
        line = (
            f"has none of the labels {_join_names(some)}" if some else "needs a label, one of none"
        )
        yield _Check(has_any, lambda _: line)
    if has_none is not None:
        excluded = frozenset(selector.none or ())
        yield _Check(
            has_none,
            lambda candidate: f"has {_name_labels(excluded & candidate.labels)}",
        )


def _name_labels(labels: frozenset[str]) -> str:
    return f"label{'s' if len(labels) > 1 else ''} {_join_names(labels)}"


def _check_model(name: str) -> _Check:
    line = f"does not serve model {_format_text(name)}"
    return _Check(lambda candidate: name in candidate.models, lambda _: line)


def _check_minimum(minimum: float, attribute: str, subject: str) -> _Check:
    get_value: Callable[[Candidate], float | None] = attrgetter(attribute)

    def met(candidate: Candidate) -> bool:
        value = get_value(candidate)
        return value is not None and value >= minimum

    def line(candidate: Candidate) -> str:
        shown = _format_measurement(get_value(candidate), minimum)
        return f"needs {_format_number(minimum)} MB {subject}, has {shown}"

    return _Check(met, line)


def _check_max_cpu(maximum: float) -> _Check:
    def line(candidate: Candidate) -> str:
        shown = _format_measurement(candidate.cpu_percent, maximum)
        return f"needs CPU at most {_format_number(maximum)} %, has {shown}"

    return _Check(
        lambda candidate: candidate.cpu_percent is not None and candidate.cpu_percent <= maximum,
        line,
    )


def _check_capabilities(text: str) -> _Check:
    part = orjson.loads(text)

    def line(candidate: Candidate) -> str:
        missing = part
        if isinstance(part, dict):
            whole = candidate.capabilities
            missing = {k: v for k, v in part.items() if not contains(whole, {k: v})}
        return f"capabilities do not contain {_format_text(orjson.dumps(missing).decode())}"

    return _Check(lambda candidate: contains(candidate.capabilities, part), line)


def _join_names(names: frozenset[str]) -> str:
    shown = ", ".join(_format_text(name) for name in sorted(names)[:_MAX_NAMES])
    more = len(names) - _MAX_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _format_text(text: str) -> str:
    """Return the text on one line of bounded length, quoted if it is empty or not printable."""
    cut = text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"
    return cut if cut and cut.isprintable() else repr(cut)


def _format_measurement(value: float | None, bound: float) -> str:
    """Return the value to one decimal, or exactly if rounding would move it across the bound."""
    if value is None:
        return "none measured"
    rounded = round(value, 1)
    stays_on_its_side = rounded != bound and (rounded > bound) == (value > bound)
    return _format_number(rounded if stays_on_its_side else value)


def _format_number(value: float) -> str:
    return repr(float(value) + 0.0).removesuffix(".0")  # -0.0 + 0.0 is 0.0
