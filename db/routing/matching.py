"""What a router needs of a node: which offers meet it, and why the others do not. Pure."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

import orjson

from db.core.enums import NodeRole, NodeStatus, NodeType
from db.registry.node_filter import LabelSelector
from db.routing.candidates import Offer
from db.routing.jsonb_contains import contains

_MAX_NAMES = 5
_MAX_TEXT = 120


@dataclass(frozen=True, slots=True)
class Requirements:
    """None asks for nothing; an empty collection of roles, types or `any` labels is met by no node.

    A node that is OFFLINE or in MAINTENANCE meets none, whatever they are.
    """

    roles: tuple[NodeRole, ...] | None = None
    types: tuple[NodeType, ...] | None = None
    labels: LabelSelector | None = None
    capabilities: str | None = None
    """JSON text: what a node's capabilities must contain, by PostgreSQL's `@>`."""
    model: str | None = None
    min_memory_available_mb: float | None = None
    min_gpu_memory_free_mb: float | None = None
    max_cpu_percent: float | None = None
    include_degraded: bool = False


NO_REQUIREMENTS = Requirements()


def divided(requirements: Requirements, offers: Iterable[Offer]) -> tuple[list[Offer], list[Offer]]:
    """The candidates, which meet all, and the others; faster than to ask `unmet` about each."""
    tests = [check.met for check in _checks(requirements)]
    candidates: list[Offer] = []
    others: list[Offer] = []
    for offer in offers:
        for met in tests:
            if not met(offer):
                others.append(offer)
                break
        else:
            candidates.append(offer)
    return candidates, others


def unmet(requirements: Requirements, offer: Offer) -> list[str]:
    """A line about each requirement that is not met, bounded in length, always in this order:

    status, role, type, labels, model, memory, GPU memory, CPU, capabilities.
    """
    return [check.line(offer) for check in _checks(requirements) if not check.met(offer)]


class _Check(NamedTuple):
    """A requirement that was given."""

    met: Callable[[Offer], bool]
    line: Callable[[Offer], str]
    """Of an offer that does not meet it."""


# Small: each holds a parsed document. It serves who asks about one offer at a time.
@lru_cache(maxsize=16)
def _checks(need: Requirements) -> tuple[_Check, ...]:
    checks = [_status(include_degraded=need.include_degraded)]
    if need.roles is not None:
        checks.append(_one_of("role", need.roles))
    if need.types is not None:
        checks.append(_one_of("type", need.types))
    if need.labels is not None:
        checks.extend(_labels(need.labels))
    if need.model is not None:
        checks.append(_model(need.model))
    if need.min_memory_available_mb is not None:
        checks.append(
            _at_least(need.min_memory_available_mb, "memory_available_mb", "of memory available")
        )
    if need.min_gpu_memory_free_mb is not None:
        checks.append(_at_least(need.min_gpu_memory_free_mb, "gpu_memory_free_mb", "on one GPU"))
    if need.max_cpu_percent is not None:
        checks.append(_cpu_at_most(need.max_cpu_percent))
    if need.capabilities is not None:
        checks.append(_capabilities(need.capabilities))  # the last, for it takes longest
    return tuple(checks)


def _status(*, include_degraded: bool) -> _Check:
    usable = (NodeStatus.ONLINE, NodeStatus.DEGRADED) if include_degraded else (NodeStatus.ONLINE,)
    placed = {NodeStatus.MAINTENANCE: "in "}
    return _Check(
        lambda offer: offer.status in usable,
        lambda offer: f"is {placed.get(offer.status, '')}{offer.status.name}",
    )


def _one_of(attribute: str, accepted: Sequence[NodeRole] | Sequence[NodeType]) -> _Check:
    of = attrgetter(attribute)
    needed = " or ".join(dict.fromkeys(value.name for value in accepted)) or "one of none"
    return _Check(
        lambda offer: of(offer) in accepted,
        lambda offer: f"has {attribute} {of(offer).name}, needs {needed}",
    )


def _labels(selector: LabelSelector) -> Iterator[_Check]:
    if selector.all is not None:
        every = frozenset(selector.all)
        yield _Check(
            lambda offer: every <= offer.labels,
            lambda offer: f"lacks {_labels_named(every - offer.labels)}",
        )
    if selector.any is not None:
        some = frozenset(selector.any)
        line = f"has none of the labels {_listed(some)}" if some else "needs a label, one of none"
        yield _Check(lambda offer: not some.isdisjoint(offer.labels), lambda _: line)
    if selector.none is not None:
        no = frozenset(selector.none)
        yield _Check(
            lambda offer: no.isdisjoint(offer.labels),
            lambda offer: f"has {_labels_named(no & offer.labels)}",
        )


def _labels_named(labels: frozenset[str]) -> str:
    return f"label{'s' if len(labels) > 1 else ''} {_listed(labels)}"


def _model(name: str) -> _Check:
    line = f"does not serve model {_shown(name)}"
    return _Check(lambda offer: name in offer.models, lambda _: line)


def _at_least(needed: float, attribute: str, of_what: str) -> _Check:
    measured: Callable[[Offer], float | None] = attrgetter(attribute)

    def met(offer: Offer) -> bool:
        value = measured(offer)
        return value is not None and value >= needed

    def line(offer: Offer) -> str:
        return f"needs {_digits(needed)} MB {of_what}, has {_measured(measured(offer), needed)}"

    return _Check(met, line)


def _cpu_at_most(most: float) -> _Check:
    return _Check(
        lambda offer: offer.cpu_percent is not None and offer.cpu_percent <= most,
        lambda offer: (
            f"needs CPU at most {_digits(most)} %, has {_measured(offer.cpu_percent, most)}"
        ),
    )


def _capabilities(text: str) -> _Check:
    part = orjson.loads(text)

    def line(offer: Offer) -> str:
        missing = part
        if isinstance(part, dict):
            whole = offer.capabilities
            missing = {k: v for k, v in part.items() if not contains(whole, {k: v})}
        return f"capabilities do not contain {_shown(orjson.dumps(missing).decode())}"

    return _Check(lambda offer: contains(offer.capabilities, part), line)


def _listed(names: frozenset[str]) -> str:
    shown = ", ".join(_shown(name) for name in sorted(names)[:_MAX_NAMES])
    more = len(names) - _MAX_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _shown(text: str) -> str:
    """On one line, bounded, and to be seen even where it is empty."""
    cut = text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"
    return cut if cut and cut.isprintable() else repr(cut)


def _measured(value: float | None, bound: float) -> str:
    """To one decimal, unless that would put it on the other side of the bound."""
    if value is None:
        return "none measured"
    rounded = round(value, 1)
    on_its_side = rounded != bound and (rounded > bound) == (value > bound)
    return _digits(rounded if on_its_side else value)


def _digits(value: float) -> str:
    return repr(float(value) + 0.0).removesuffix(".0")  # -0.0 + 0.0 is 0.0
