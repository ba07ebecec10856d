"""A real Prometheus scrapes a real registry: alerts and dashboard find what they ask for."""

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
from tests.support.authority import BEGUN, DAY, Authority
from tests.support.keyring import create_token
from tests.support.live_server import run_server
from tests.support.paths import ROOT
from tests.support.prometheus import Prometheus
from tests.support.transport_ws import open_websocket

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEPLOY = ROOT / "deploy"
HERE = DEPLOY / "prometheus"
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((HERE / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}
DASHBOARD = json.loads(
    (DEPLOY / "grafana" / "dashboards" / "node-registry.json").read_text(encoding="utf-8")
)
ROWS = ["Fleet", "Heartbeats", "Operations", "Subscriptions", "Database", "Process"]
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"] if panel["type"] != "row"}
AWAY = "127.0.0.1:1"
"""Where no registry is."""

NODE = {"nodeId": "gpu-1", "role": "PRODUCTION", "type": "WORKER", "bootId": "run-1"}
BEAT = {"nodeId": "gpu-1", "bootId": "run-1", "sequence": 1}

_METRIC = re.compile(r"\b(?:(?:node_registry|process|python)_\w+|up|ALERTS)\b")
_SELECTOR = re.compile(r"\b((?:node_registry|process|python)_\w+|up|ALERTS)\{([^}]*)\}")
_LABEL = re.compile(r"(\w+)(?:=|!=|=~|!~)\"")


@dataclass(frozen=True)
class Scraped:
    """`at` is a moment soon after a good scrape: on a busy machine a later one may be too slow."""

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
) -> AsyncIterator[Scraped]:
    """As the shipped configuration has it, but for where the registry is and how often."""
    folder = tmp_path_factory.mktemp("prometheus")
    authority = Authority(folder)
    pair = authority.server()
    trust = ssl.create_default_context(cafile=authority.certificate)
    async with run_server(
        shared_database_url,
        folder / "registry",
        auth="required",
        tls_certificate=pair.certificate,
        tls_key=pair.key,
    ) as server:
        key = (await create_token(server.services.database)).text
        (folder / "key").write_text(f"{key}\n")
        agents = (await create_token(server.services.database, Role.ADMIN)).text
        address = server.url.removeprefix("http://")
        config = yaml.safe_load((HERE / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(HERE / name) for name in config["rule_files"]]
        [job] = config["scrape_configs"]
        job["scheme"], job["tls_config"] = "https", {"ca_file": str(authority.certificate)}
        job["authorization"]["credentials_file"] = str(folder / "key")
        job["static_configs"] = [{"targets": [address, AWAY]}]
        headers = {"authorization": f"Bearer {agents}"}
        async with (
            httpx.AsyncClient(
                base_url=f"https://{address}", verify=trust, headers=headers, timeout=30
            ) as http,
            open_websocket(f"wss://{address}/graphql", headers=headers, ssl=trust) as client,
        ):
            await client.send({"type": "connection_init"})
            await client.subscribe("1", CHANGES)
            for document, given in (
                (agent.REGISTER_NODE, {"input": NODE}),
                (agent.RECORD_HEARTBEAT, {"input": BEAT}),
                (agent.RECORD_HEARTBEAT, {"input": {**BEAT, "bootId": "run-0"}}),
                (agent.REVISION, {}),
            ):
                body = {"documentId": compute_id(document), "variables": given}
                assert (await http.post("/graphql", json=body)).status_code == 200
            await client.receive()
            text = (await http.get("/metrics")).text
            async with prometheus.run_prometheus(programs, config, folder) as running:
                async with asyncio.timeout(30):
                    while not (
                        good := await running.query(
                            "count_over_time(up[1m]) > 1 and up > 0 and on() ALERTS"
                        )
                    ):
                        await asyncio.sleep(0.1)
                yield Scraped(running, good[0]["value"][0], text)


async def require_known(scraped: Scraped, expression: str) -> None:
    """Prometheus has each metric of it, with each label that is selected by."""
    names = set(_METRIC.findall(expression))
    assert names, expression
    for name in names:
        assert await scraped.query(name), (name, expression)
    for name, selected in _SELECTOR.findall(expression):
        for label in _LABEL.findall(selected):
            assert await scraped.query(f'{name}{{{label}!=""}}'), (name, label)


async def promtool(programs: Path, command: str, given: str = "") -> tuple[int | None, str]:
    """Its exit status, and what it says."""
    process = await asyncio.create_subprocess_exec(
        programs / "promtool", *command.split(), cwd=HERE, stdin=PIPE, stdout=PIPE, stderr=STDOUT
    )
    async with asyncio.timeout(60):
        said, _ = await process.communicate(given.encode())
    return process.returncode, said.decode()


@pytest.mark.parametrize(
    "command",
    [
        "check config --syntax-only prometheus.yml",
        "check rules --lint-fatal alerts.yaml",
        "test rules alerts_test.yaml",
    ],
)
async def test_promtool_finds_nothing_wrong_with(programs: Path, command: str) -> None:
    status, said = await promtool(programs, command)
    assert status == 0, said


async def test_names_units_and_descriptions_are_as_promtool_wants_them(
    programs: Path, scraped: Scraped
) -> None:
    assert await promtool(programs, "check metrics", scraped.text) == (0, "")


async def test_every_alert_has_words_a_severity_and_a_case_in_which_it_fires() -> None:
    for name, alert in ALERTS.items():
        assert alert["annotations"].keys() == {"summary", "description"}, name
        assert alert["labels"]["severity"] in {"critical", "warning"}, name
    cases = yaml.safe_load((HERE / "alerts_test.yaml").read_text())["tests"]
    fired = {
        sample["labels"].split('"')[1]
        for case in cases
        for question in case["promql_expr_test"]
        for sample in question["exp_samples"]
    }
    assert fired == ALERTS.keys()


@pytest.mark.parametrize("name", ALERTS)
async def test_alert_asks_for_what_the_registry_tells(scraped: Scraped, name: str) -> None:
    await require_known(scraped, ALERTS[name]["expr"])
    found = await scraped.query(ALERTS[name]["expr"])
    instances = {series["metric"].get("instance") for series in found}
    if name == "NodeRegistryDown":
        assert instances == {AWAY}
    elif name != "NodeRegistryUpkeepLate":  # the first round comes after five minutes
        assert instances == set()


@pytest.mark.parametrize("title", PANELS)
async def test_panel_of_the_dashboard_has_something_to_show(scraped: Scraped, title: str) -> None:
    for target in PANELS[title]["targets"]:
        expression = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".+")
        assert "$" not in expression
        await require_known(scraped, expression)
        assert await scraped.query(expression), expression


async def test_the_dashboard_is_laid_out_in_its_rows() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ROWS
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    taken = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert {x for x, _ in taken} == set(range(24))
    assert {y for _, y in taken} == set(range(max(y for _, y in taken) + 1))
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


async def test_grafana_is_provisioned_with_what_the_dashboard_asks() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    asked = {json.dumps(panel["datasource"], sort_keys=True) for panel in PANELS.values()}
    assert asked == {json.dumps({"type": source["type"], "uid": source["uid"]})}


async def test_prometheus_evaluates_every_alert(scraped: Scraped) -> None:
    rules = await scraped.prometheus.rules()
    assert {rule["name"] for rule in rules} == ALERTS.keys()
    assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}
    assert not [rule["name"] for rule in rules if rule["state"] == "firing"]


async def test_the_end_of_the_certificate_is_told(scraped: Scraped) -> None:
    [told] = await scraped.query("node_registry_tls_certificate_expiry_timestamp_seconds")
    assert float(told["value"][1]) == (BEGUN + 10 * DAY).timestamp()


async def test_what_the_registry_does_is_counted_by_its_documents_and_codes(
    scraped: Scraped,
) -> None:
    operations = await scraped.query("node_registry_operation_duration_seconds_count")
    told = {
        (labels["operation"], labels["type"], labels["outcome"], series["value"][1])
        for series in operations
        for labels in [series["metric"]]
    }
    assert told == {
        ("RegisterNode", "mutation", "ok", "1"),
        ("RecordHeartbeat", "mutation", "ok", "1"),
        ("RecordHeartbeat", "mutation", "STALE_BOOT", "1"),
        ("Revision", "query", "ok", "1"),
    }
    [following] = await scraped.query("node_registry_subscribers > 0")
    assert following["metric"]["stream"] == "status_changes"
