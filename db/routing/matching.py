"""A router's requirements: which candidates meet them, and why the others do not; no I/O."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple

import orjson

from db.core.enums import NodeRole, NodeStatus, NodeType
from db.core.jsonb_contains import compare
from db.core.turns import Steps
from db.registry.node_filter import LabelSelector
from db.routing.candidates import Candidate

_MAX_NAMES = 5
_MAX_TEXT = 120
_CANDIDATES_PER_STEP = 64
_MAX_LITERALS = 8
_UNESCAPED = re.compile(r"[A-Za-z0-9 _.:-]+")
"""Text that JSON has as it is."""


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
) -> Steps[tuple[list[Candidate], list[Candidate]]]:
    """Return the candidates that meet all requirements, and the others.

    This is faster than calling `explain_exclusions` for all. The candidates must not change
    meanwhile.
    """
    tests = [check.met for check in _make_checks(requirements)]
    has_capabilities = _make_capabilities_check(requirements)
    fit: list[Candidate] = []
    unfit: list[Candidate] = []
    remaining = iter(candidates)
    while batch := list(islice(remaining, _CANDIDATES_PER_STEP)):
        for candidate in batch:
            for met in tests:
                if not met(candidate):
                    unfit.append(candidate)
                    break
            else:
                if has_capabilities is None:
                    fit.append(candidate)
                else:
                    is_fit = yield from has_capabilities.met(candidate)
                    (fit if is_fit else unfit).append(candidate)
                    yield
        yield
    return fit, unfit


def explain_exclusions(
    requirements: Requirements, candidates: Iterable[Candidate]
) -> Steps[list[list[str]]]:
    """Return for each candidate a line of bounded length about each requirement it does not meet.

    The order is status, role, type, labels, model, memory, GPU memory, CPU, capabilities.
    """
    checks = _make_checks(requirements)
    capabilities = _make_capabilities_check(requirements)
    explained: list[list[str]] = []
    for candidate in candidates:
        lines = [check.line(candidate) for check in checks if not check.met(candidate)]
        if capabilities is not None and not (yield from capabilities.met(candidate)):
            lines.append((yield from capabilities.line(candidate)))
        explained.append(lines)
        yield
    return explained


class _Check(NamedTuple):
    """One requirement: how it is tested, and what is said of a candidate that fails it."""

    met: Callable[[Candidate], bool]
    line: Callable[[Candidate], str]
    """Returns the line about a candidate that does not meet it."""


def _make_checks(requirements: Requirements) -> tuple[_Check, ...]:
    """Return the checks of everything but the capabilities."""
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
    return tuple(checks)


class _CapabilitiesCheck:
    """The requirement of capabilities, whose test and line can take many steps."""

    def __init__(self, part: Any) -> None:
        self._part = part
        self._literals = list(islice(_list_literals(part), _MAX_LITERALS))

    def met(self, candidate: Candidate) -> Steps[bool]:
        text = candidate.capabilities
        for literal in self._literals:  # much faster than to parse the text
            if literal not in text:
                return False
        return (yield from compare(orjson.loads(text), self._part))

    def line(self, candidate: Candidate) -> Steps[str]:
        """Return the line about a candidate that does not meet it."""
        missing = self._part
        if isinstance(missing, dict):
            whole = orjson.loads(candidate.capabilities)
            missing = {}
            for key, value in self._part.items():
                if not (yield from compare(whole, {key: value})):
                    missing[key] = value
        return f"capabilities do not contain {_format_text(orjson.dumps(missing).decode())}"


def _list_literals(part: Any) -> Iterator[str]:
    """Yield texts that the JSON of any document contains that contains `part`: keys and strings."""
    if isinstance(part, str) and _UNESCAPED.fullmatch(part):
        yield f'"{part}"'
    elif isinstance(part, dict):
        for key, value in part.items():
            yield from _list_literals(key)
            yield from _list_literals(value)
    elif isinstance(part, list):
        for value in part:
            yield from _list_literals(value)


def _make_capabilities_check(requirements: Requirements) -> _CapabilitiesCheck | None:
    text = requirements.capabilities
    return None if text is None else _CapabilitiesCheck(orjson.loads(text))


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
