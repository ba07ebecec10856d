"""What a story comes to, beside its targets."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.fleet.agent_statistics import percentile
from bench.fleet.scenario import Story, Terms
from bench.report import Circumstances

_ROOMY = 100
"""Connections, at most, beside which the memory is the nodes' own."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`at_most` is the target, where there is one."""

    name: str
    value: float
    unit: str
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        return None if self.at_most is None else self.value <= self.at_most


def findings(terms: Terms, story: Story) -> list[Finding]:
    steady = next(phase for phase in story.phases if phase.name == "steady")
    given_up = sum(phase.given_up.total() for phase in story.phases)
    p50, p99 = percentile(steady.latencies, 50), percentile(steady.latencies, 99)
    few = 0 < terms.connections <= _ROOMY
    found = [
        Finding("heartbeats", len(steady.latencies) / steady.seconds, "/s"),
        Finding("server", steady.busy.server, "of a core", 0.6),
        Finding("answer p50", p50, "ms"),
        Finding("answer p99", p99, "ms", 10 * p50),
        Finding("the load", steady.busy.load, "of a core"),
        Finding("the load's own lag, p99", percentile(steady.lags, 99), "ms"),
        Finding("errors while steady", steady.errors.total(), "", 0),
        Finding("errors that no agent retries", given_up, "", 0),
        Finding(
            "memory per node" if few else "memory per node and its connection",
            (story.resident[0][1] - story.bytes_before) / story.later / 1000,
            "kB",
            2 if few else None,
        ),
        Finding("growth while steady", _growth(story) / 1e6, "MB"),
    ]
    if story.back_seconds is not None and story.serves_seconds is not None:
        found += [
            Finding("killed until served again", story.serves_seconds, "s"),
            Finding("killed until all are back", story.back_seconds, "s", 2 * terms.interval),
            Finding("not back by then", story.missing, "nodes", 0),
        ]
    return found


def _growth(story: Story) -> int:
    return story.resident[-1][1] - story.resident[0][1]


def as_text(terms: Terms, story: Story, found: Sequence[Finding], under: Circumstances) -> str:
    fleet = f"{terms.nodes} nodes at {terms.interval:g} s over {_connections(terms)}"
    lines = [
        *(", ".join(f"{n} {v}" for n, v in facts.items()) for facts in under.values()),
        f"{fleet}; {story.failed} failed, {story.slept} slept, and came back",
        "",
        *map(_line, found),
        "",
        "the registry saw: " + _counted(story.statuses),
        *(f"  {count:7} {what}" for what, count in story.transitions.items()),
    ]
    for phase in story.phases:
        if phase.errors or phase.given_up:
            lines.append(f"errors, {phase.name}: " + _counted(+phase.errors))
            lines.append("  not retried: " + _counted(phase.given_up))
    return "\n".join(lines)


def _connections(terms: Terms) -> str:
    return f"{terms.connections or terms.nodes} {terms.transport} connections"


def _line(finding: Finding) -> str:
    target = ""
    if finding.at_most is not None:
        met = "yes" if finding.met else "NO"
        target = f"at most {finding.at_most:.4g}: {met}"
    return f"{finding.name:38} {finding.value:10.3f} {finding.unit:10} {target}".rstrip()


def _counted(counts: dict[str, int] | Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items()) or "none"
