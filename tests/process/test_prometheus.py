"""A real Prometheus scrapes a real registry and has the metrics of alerts and dashboard."""

import asyncio
import json
import re
import ssl
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from sqlalchemy import URL

from agent import documents as agent
from agent.trusted_documents import compute_id
from db.core.enums import Role
from tests.support import prometheus
from tests.support.api import CHANGES
from tests.support.authority import DAY, VALID_FROM, Authority
from tests.support.live_server import run_server
from tests.support.paths import ROOT
from tests.support.prometheus import Prometheus
from tests.support.tokens import create_token
from tests.support.transport_ws import open_websocket

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEPLOY = ROOT / "deploy"
CONFIG_DIR = DEPLOY / "prometheus"
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((CONFIG_DIR / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}
DASHBOARD = json.loads(
    (DEPLOY / "grafana" / "dashboards" / "node-registry.json").read_text(encoding="utf-8")
)
ROWS = ["Fleet", "Heartbeats", "Operations", "Subscriptions", "Database", "Process"]
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"] if panel["type"] != "row"}
UNREACHABLE = "127.0.0.1:1"
"""An address at which no registry listens."""

NODE = {"nodeId": "gpu-1", "role": "PRODUCTION", "type": "WORKER", "bootId": "run-1"}
BEAT = {"nodeId": "gpu-1", "bootId": "run-1", "sequence": 1}

_METRIC = re.compile(r"\b(?:(?:node_registry|process|python)_\w+|up|ALERTS)\b")
_SELECTOR = re.compile(r"\b((?:node_registry|process|python)_\w+|up|ALERTS)\{([^}]*)\}")
_LABEL = re.compile(r"(\w+)(?:=|!=|=~|!~)\"")


@dataclass(frozen=True)
class ScrapedRegistry:
    """A Prometheus that has scraped the registry, and the text of its metrics.

    `at` is a time soon after a successful scrape: on a busy machine a later one may time out.
    """

    prometheus: Prometheus
    at: float
    text: str

    async def query(self, expression: str) -> list[dict[str, Any]]:
        return await self.prometheus.query(expression, self.at)


@pytest.fixture(scope="module")
def programs(pytestconfig: pytest.Config) -> Path:
    assert pytestconfig.cache is not None
    return prometheus.find_programs(pytestconfig.cache.mkdir("prometheus"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scraped(
    programs: Path, shared_database_url: URL, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ScrapedRegistry]:
    """Prometheus with the shipped configuration, except for the targets and intervals."""
    folder = tmp_path_factory.mktemp("prometheus")
    authority = Authority(folder)
    pair = authority.server()
    tls_context = ssl.create_default_context(cafile=authority.certificate)
    async with run_server(
        shared_database_url,
        folder / "registry",
        auth="required",
        tls_certificate=pair.certificate,
        tls_key=pair.key,
    ) as server:
        token = (await create_token(server.services.database)).text
        (folder / "key").write_text(f"{token}\n")
        agent_token = (await create_token(server.services.database, Role.ADMIN)).text
        address = server.url.removeprefix("http://")
        config = yaml.safe_load((CONFIG_DIR / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(CONFIG_DIR / name) for name in config["rule_files"]]
        [job] = config["scrape_configs"]
        job["scheme"], job["tls_config"] = "https", {"ca_file": str(authority.certificate)}
        job["authorization"]["credentials_file"] = str(folder / "key")
        job["static_configs"] = [{"targets": [address, UNREACHABLE]}]
        headers = {"authorization": f"Bearer {agent_token}"}
        async with (
            httpx.AsyncClient(
                base_url=f"https://{address}", verify=tls_context, headers=headers, timeout=30
            ) as http,
            open_websocket(f"wss://{address}/graphql", headers=headers, ssl=tls_context) as client,
        ):
            await client.send({"type": "connection_init"})
            await client.subscribe("1", CHANGES)
            for document, variables in (
                (agent.REGISTER_NODE, {"input": NODE}),
                (agent.RECORD_HEARTBEAT, {"input": BEAT}),
                (agent.RECORD_HEARTBEAT, {"input": {**BEAT, "bootId": "run-0"}}),
                (agent.REVISION, {}),
            ):
                body = {"documentId": compute_id(document), "variables": variables}
                assert (await http.post("/graphql", json=body)).status_code == 200
            await client.receive()
            text = (await http.get("/metrics")).text
            async with prometheus.run_prometheus(programs, config, folder) as scraper:
                async with asyncio.timeout(30):
                    while not (
                        series := await scraper.query(
                            "count_over_time(up[1m]) > 1 and up > 0 and on() ALERTS"
                        )
                    ):
                        await asyncio.sleep(0.1)
                yield ScrapedRegistry(scraper, series[0]["value"][0], text)


async def require_metrics(scraped: ScrapedRegistry, expression: str) -> None:
    """Fail unless Prometheus has every metric of the expression with every label it selects by."""
    names = set(_METRIC.findall(expression))
    assert names, expression
    for name in names:
        assert await scraped.query(name), (name, expression)
    for name, selected in _SELECTOR.findall(expression):
        for label in _LABEL.findall(selected):
            assert await scraped.query(f'{name}{{{label}!=""}}'), (name, label)


async def run_promtool(programs: Path, command: str, text: str = "") -> tuple[int | None, str]:
    """Run promtool and return its exit status and output."""
    process = await asyncio.create_subprocess_exec(
        programs / "promtool",
        *command.split(),
        cwd=CONFIG_DIR,
        stdin=PIPE,
        stdout=PIPE,
        stderr=STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate(text.encode())
    return process.returncode, output.decode()


@pytest.mark.parametrize(
    "command",
    [
        "check config --syntax-only prometheus.yml",
        "check rules --lint-fatal alerts.yaml",
        "test rules alerts_test.yaml",
    ],
)
async def test_promtool_accepts_the_configuration(programs: Path, command: str) -> None:
    status, output = await run_promtool(programs, command)
    assert status == 0, output


async def test_promtool_accepts_the_names_units_and_descriptions_of_metrics(
    programs: Path, scraped: ScrapedRegistry
) -> None:
    assert await run_promtool(programs, "check metrics", scraped.text) == (0, "")


async def test_every_alert_has_texts_a_severity_and_a_test_case_in_which_it_fires() -> None:
    for name, alert in ALERTS.items():
        assert alert["annotations"].keys() == {"summary", "description"}, name
        assert alert["labels"]["severity"] in {"critical", "warning"}, name
    cases = yaml.safe_load((CONFIG_DIR / "alerts_test.yaml").read_text())["tests"]
    fired = {
        sample["labels"].split('"')[1]
        for case in cases
        for question in case["promql_expr_test"]
        for sample in question["exp_samples"]
    }
    assert fired == ALERTS.keys()


@pytest.mark.parametrize("name", ALERTS)
async def test_alert_selects_metrics_that_the_registry_exports(
    scraped: ScrapedRegistry, name: str
) -> None:
    await require_metrics(scraped, ALERTS[name]["expr"])
    firing = await scraped.query(ALERTS[name]["expr"])
    instances = {series["metric"].get("instance") for series in firing}
    if name == "NodeRegistryDown":
        assert instances == {UNREACHABLE}
    elif name != "NodeRegistryUpkeepLate":  # the first round comes after five minutes
        assert instances == set()


@pytest.mark.parametrize("title", PANELS)
async def test_panel_of_the_dashboard_has_data(scraped: ScrapedRegistry, title: str) -> None:
    for target in PANELS[title]["targets"]:
        expression = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".+")
        assert "$" not in expression
        await require_metrics(scraped, expression)
        assert await scraped.query(expression), expression


async def test_the_dashboard_is_laid_out_in_its_rows() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ROWS
    positions = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (x, y)
        for position in positions
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(24))
    assert {y for _, y in cells} == set(range(max(y for _, y in cells) + 1))
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


async def test_grafana_is_provisioned_with_the_datasource_of_the_dashboard() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    datasources = {json.dumps(panel["datasource"], sort_keys=True) for panel in PANELS.values()}
    assert datasources == {json.dumps({"type": source["type"], "uid": source["uid"]})}


async def test_prometheus_evaluates_every_alert(scraped: ScrapedRegistry) -> None:
    rules = await scraped.prometheus.rules()
    assert {rule["name"] for rule in rules} == ALERTS.keys()
    assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}
    assert not [rule["name"] for rule in rules if rule["state"] == "firing"]


async def test_the_expiry_of_the_certificate_is_exported(scraped: ScrapedRegistry) -> None:
    [series] = await scraped.query("node_registry_tls_certificate_expiry_timestamp_seconds")
    assert float(series["value"][1]) == (VALID_FROM + 10 * DAY).timestamp()


async def test_operations_are_counted_by_document_and_code(
    scraped: ScrapedRegistry,
) -> None:
    operations = await scraped.query("node_registry_operation_duration_seconds_count")
    counts = {
        (labels["operation"], labels["type"], labels["outcome"], series["value"][1])
        for series in operations
        for labels in [series["metric"]]
    }
    assert counts == {
        ("RegisterNode", "mutation", "ok", "1"),
        ("RecordHeartbeat", "mutation", "ok", "1"),
        ("RecordHeartbeat", "mutation", "STALE_BOOT", "1"),
        ("Revision", "query", "ok", "1"),
    }
    [followers] = await scraped.query("node_registry_subscribers > 0")
    assert followers["metric"]["stream"] == "status_changes"
