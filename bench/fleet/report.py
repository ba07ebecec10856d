"""The findings of a scenario, next to their targets."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.fleet.agent_statistics import compute_percentile
from bench.fleet.scenario import Scenario, ScenarioResult
from bench.report import Environment, format_environment

_FEW_CONNECTIONS = 100
"""With at most so many connections, the server's memory counts as that of the nodes alone."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A measured value; `at_most` is its target, if it has one."""

    name: str
    value: float
    unit: str
    at_most: float | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the value meets its target; None without a target."""
        return None if self.at_most is None else self.value <= self.at_most


def compute_findings(scenario: Scenario, result: ScenarioResult) -> list[Finding]:
    steady = next(phase for phase in result.phases if phase.name == "steady")
    fatal_count = sum(phase.fatal_errors.total() for phase in result.phases)
    p50, p99 = compute_percentile(steady.latencies, 50), compute_percentile(steady.latencies, 99)
    has_few_connections = 0 < scenario.connections <= _FEW_CONNECTIONS
    memory_growth = result.memory_samples[0][1] - result.baseline_bytes
    findings = [
        Finding("heartbeats", len(steady.latencies) / steady.seconds, "/s"),
        Finding("server", steady.cpu.server, "of a core", 0.6),
        Finding("answer p50", p50, "ms"),
        Finding("answer p99", p99, "ms", 10 * p50),
        Finding("the load", steady.cpu.load, "of a core"),
        Finding("the load's own lag, p99", compute_percentile(steady.lags, 99), "ms"),
        Finding("errors while steady", steady.errors.total(), "", 0),
        Finding("errors that no agent retries", fatal_count, "", 0),
        Finding(
            "memory per node" if has_few_connections else "memory per node and its connection",
            memory_growth / result.nodes_after_baseline / 1000,
            "kB",
            2 if has_few_connections else None,
        ),
        Finding("growth while steady", _compute_growth_bytes(result) / 1e6, "MB"),
    ]
    if result.seconds_until_all_back is not None and result.seconds_until_served is not None:
        seconds_until_all_back = result.seconds_until_all_back
        findings += [
            Finding("killed until served again", result.seconds_until_served, "s"),
            Finding(
                "killed until all are back", seconds_until_all_back, "s", 2 * scenario.interval
            ),
            Finding("not back by then", result.missing_nodes, "nodes", 0),
        ]
    return findings


def _compute_growth_bytes(result: ScenarioResult) -> int:
    return result.memory_samples[-1][1] - result.memory_samples[0][1]


def format_text(
    scenario: Scenario,
    result: ScenarioResult,
    findings: Sequence[Finding],
    environment: Environment,
) -> str:
    """Return the environment, the findings, what the registry recorded, and the errors."""
    fleet = f"{scenario.nodes} nodes at {scenario.interval:g} s over"
    fleet += f" {scenario.connections or scenario.nodes} {scenario.transport} connections"
    lines = [
        *format_environment(environment),
        f"{fleet}; {result.failure_count} failed, {result.sleep_count} slept, and came back",
        "",
        *map(_format_finding, findings),
        "",
        "the registry recorded: " + _format_counts(result.statuses),
        *(f"  {count:7} {transition}" for transition, count in result.transitions.items()),
    ]
    for phase in result.phases:
        if phase.errors or phase.fatal_errors:
            lines.append(f"errors, {phase.name}: " + _format_counts(+phase.errors))
            lines.append("  not retried: " + _format_counts(phase.fatal_errors))
    return "\n".join(lines)


def _format_finding(finding: Finding) -> str:
    target = ""
    if finding.at_most is not None:
        is_met = "yes" if finding.is_met else "NO"
        target = f"at most {finding.at_most:.4g}: {is_met}"
    return f"{finding.name:38} {finding.value:10.3f} {finding.unit:10} {target}".rstrip()


def _format_counts(counts: dict[str, int] | Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
