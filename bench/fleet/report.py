"""What a story comes to, beside its targets."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.fleet.agent_statistics import compute_percentile
from bench.fleet.scenario import Scenario, ScenarioResult
from bench.report import Environment

_FEW_CONNECTIONS = 100
"""Connections, at most, beside which the memory is the nodes' own."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`at_most` is the target, where there is one."""

    name: str
    value: float
    unit: str
    at_most: float | None = None

    @property
    def is_met(self) -> bool | None:
        return None if self.at_most is None else self.value <= self.at_most


def compute_findings(terms: Scenario, story: ScenarioResult) -> list[Finding]:
    steady = next(phase for phase in story.phases if phase.name == "steady")
    given_up = sum(phase.fatal_errors.total() for phase in story.phases)
    p50, p99 = compute_percentile(steady.latencies, 50), compute_percentile(steady.latencies, 99)
    few = 0 < terms.connections <= _FEW_CONNECTIONS
    found = [
        Finding("heartbeats", len(steady.latencies) / steady.seconds, "/s"),
        Finding("server", steady.cpu.server, "of a core", 0.6),
        Finding("answer p50", p50, "ms"),
        Finding("answer p99", p99, "ms", 10 * p50),
        Finding("the load", steady.cpu.load, "of a core"),
        Finding("the load's own lag, p99", compute_percentile(steady.lags, 99), "ms"),
        Finding("errors while steady", steady.errors.total(), "", 0),
        Finding("errors that no agent retries", given_up, "", 0),
        Finding(
            "memory per node" if few else "memory per node and its connection",
            (story.memory_samples[0][1] - story.baseline_bytes) / story.nodes_after_baseline / 1000,
            "kB",
            2 if few else None,
        ),
        Finding("growth while steady", _compute_growth_bytes(story) / 1e6, "MB"),
    ]
    if story.seconds_until_all_back is not None and story.seconds_until_served is not None:
        found += [
            Finding("killed until served again", story.seconds_until_served, "s"),
            Finding(
                "killed until all are back", story.seconds_until_all_back, "s", 2 * terms.interval
            ),
            Finding("not back by then", story.missing_nodes, "nodes", 0),
        ]
    return found


def _compute_growth_bytes(story: ScenarioResult) -> int:
    return story.memory_samples[-1][1] - story.memory_samples[0][1]


def format_text(
    terms: Scenario, story: ScenarioResult, found: Sequence[Finding], under: Environment
) -> str:
    fleet = f"{terms.nodes} nodes at {terms.interval:g} s over {_describe_connections(terms)}"
    lines = [
        *(", ".join(f"{n} {v}" for n, v in facts.items()) for facts in under.values()),
        f"{fleet}; {story.failure_count} failed, {story.sleep_count} slept, and came back",
        "",
        *map(_format_finding, found),
        "",
        "the registry saw: " + _format_counts(story.statuses),
        *(f"  {count:7} {what}" for what, count in story.transitions.items()),
    ]
    for phase in story.phases:
        if phase.errors or phase.fatal_errors:
            lines.append(f"errors, {phase.name}: " + _format_counts(+phase.errors))
            lines.append("  not retried: " + _format_counts(phase.fatal_errors))
    return "\n".join(lines)


def _describe_connections(terms: Scenario) -> str:
    return f"{terms.connections or terms.nodes} {terms.transport} connections"


def _format_finding(finding: Finding) -> str:
    target = ""
    if finding.at_most is not None:
        met = "yes" if finding.is_met else "NO"
        target = f"at most {finding.at_most:.4g}: {met}"
    return f"{finding.name:38} {finding.value:10.3f} {finding.unit:10} {target}".rstrip()


def _format_counts(counts: dict[str, int] | Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items()) or "none"
