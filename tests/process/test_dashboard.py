"""The dashboard in a real browser with a real registry, without a reload of the page."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, WebSocketRoute, expect
from sqlalchemy import URL, text

from db.access import token_changes
from db.core.database import Database
from db.core.enums import Role
from tests.support import fleet, npm
from tests.support.api import BEAT, DEREGISTER, REGISTER
from tests.support.browser import collect_complaints, run_chromium
from tests.support.live_server import NO_TLS
from tests.support.paths import ROOT
from tests.support.registry_process import Server, find_free_port
from tests.support.tokens import ADMIN

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

SCREENSHOTS = ROOT / "build" / "screenshots"
WALL = {"width": 1440, "height": 900}
INTERVAL_SECONDS = 0.4
FAST = {
    "NODE_REGISTRY_AUTH": "required",
    "NODE_REGISTRY_HEARTBEAT_MIN_INTERVAL_SECONDS": str(INTERVAL_SECONDS),
    "NODE_REGISTRY_HEARTBEAT_GRACE_SECONDS": "0.4",
    "NODE_REGISTRY_HEARTBEAT_STREAM_SECONDS": "0.1",
    "NODE_REGISTRY_SWEEP_INTERVAL_SECONDS": "0.1",
    "NODE_REGISTRY_DRAIN_SECONDS": "0",
    "NODE_REGISTRY_FLAP_MAX_TRANSITIONS": "1000",
}

TRIM = "DELETE FROM status_changes WHERE revision < (SELECT revision FROM registry_state)"
"""Leaves too little of the change log to resume a stream that followed it before."""

expect.set_options(timeout=20_000)


@dataclass
class Dashboard:
    """The server, database and browser that the tests share; each uses node ids of its own."""

    server: Server
    database: Database
    browser: Browser
    tokens: dict[Role, str]

    async def execute(self, query: str, **variables: Any) -> dict[str, Any]:
        """Execute an operation as an administrator, and return its data."""
        headers = {"authorization": f"Bearer {self.tokens[Role.ADMIN]}"}
        async with httpx.AsyncClient(
            base_url=self.server.url, headers=headers, verify=NO_TLS
        ) as http:
            response = await http.post("/graphql", json={"query": query, "variables": variables})
        body = response.json()
        assert "errors" not in body, body["errors"]
        data: dict[str, Any] = body["data"]
        return data

    async def register(self, node_id: str, **fields: Any) -> None:
        node = {"nodeId": node_id, "role": "PRODUCTION", "type": "WORKER", "bootId": "b", **fields}
        await self.execute(REGISTER, input=node)

    @asynccontextmanager
    async def send_heartbeats(self, node_id: str, first: int = 1) -> AsyncIterator[None]:
        """Send heartbeats of a node while the context is open."""

        async def beat() -> None:
            for sequence in itertools.count(first):
                await self.beat(node_id, sequence)
                await asyncio.sleep(INTERVAL_SECONDS / 2)

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            task.cancel()

    async def beat(self, node_id: str, sequence: int, **metrics: Any) -> None:
        beat = {"nodeId": node_id, "bootId": "b", "sequence": sequence, "metrics": metrics}
        await self.execute(BEAT, input=beat)

    @asynccontextmanager
    async def page(
        self, address: str = "/dashboard", role: Role = Role.VIEWER, **options: Any
    ) -> AsyncIterator[Page]:
        """Open a page and sign in; fail the test on any error that the browser reports."""
        context = await self.browser.new_context(
            **{"base_url": self.server.url, "viewport": WALL, **options}
        )
        try:
            page = await context.new_page()
            complaints = collect_complaints(page)
            await page.goto(address)
            await sign_in(page, self.tokens[role])
            await page.evaluate("window.neverReloaded = true")
            yield page
            assert await page.evaluate("window.neverReloaded")
            assert complaints == []
        finally:
            await context.close()


async def sign_in(page: Page, token: str) -> None:
    await page.get_by_label("API key or token").fill(token)
    await page.get_by_role("dialog").get_by_role("button", name="Sign in").click()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dashboard(
    shared_database_url: URL, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Dashboard]:
    url = shared_database_url
    async with run_chromium() as browser:
        database = Database(url)
        tokens = {}
        async with database.write() as session:
            for role in (Role.VIEWER, Role.OPERATOR, Role.ADMIN):
                created = await token_changes.create_token(
                    session, role=role, name=f"the-{role}", lifetime=timedelta(days=1), caller=ADMIN
                )
                tokens[role] = created.text
        address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        folder = tmp_path_factory.mktemp("dashboard")
        settings = {"NODE_REGISTRY_DATABASE_URL": address, "NODE_REGISTRY_DATA_DIR": str(folder)}
        server = Server(find_free_port(), FAST | settings)
        await server.start()
        try:
            await server.wait_until_ready()
            yield Dashboard(server, database, browser, tokens)
        finally:
            await server.kill()
            await database.close()


def find_row(page: Page, node_id: str) -> Any:
    return page.get_by_role("row").filter(has=page.get_by_text(node_id, exact=True))


async def test_the_page_asks_for_a_token_and_keeps_it_only_in_memory(dashboard: Dashboard) -> None:
    async with dashboard.page() as page:
        await expect(find_row(page, "node-1-hetzner-gex44")).to_contain_text("Offline")
        await expect(page.locator("#freshness")).to_have_text("Live")
        stored_values = "[localStorage.length, sessionStorage.length, document.cookie]"
        assert await page.evaluate(stored_values) == [0, 0, ""]
        await page.reload()
        await expect(page.get_by_role("dialog")).to_be_visible()
        await sign_in(page, "nrk_nonsense")
        await expect(page.get_by_role("alert")).to_contain_text(
            "the token is not one of this registry"
        )
        await expect(find_row(page, "node-1-hetzner-gex44")).to_have_count(0)
        await page.evaluate("window.neverReloaded = true")


async def test_an_internal_error_of_the_registry_does_not_sign_the_user_out(
    dashboard: Dashboard,
) -> None:
    fault = {"message": "internal error", "extensions": {"code": "INTERNAL", "retryable": False}}
    async with dashboard.page() as page:
        await expect(page.locator("#freshness")).to_have_text("Live")
        await page.route("**/graphql", lambda route: route.fulfill(json={"errors": [fault]}))
        await expect(page.locator("#freshness")).to_contain_text("Cut off")
        await page.unroute("**/graphql")
        await expect(page.locator("#freshness")).to_have_text("Live")
        await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_a_node_appears_degrades_goes_offline_and_returns_without_a_reload(
    dashboard: Dashboard,
) -> None:
    async with dashboard.page("/dashboard?q=life") as page:
        await expect(page.locator(".shown")).to_contain_text("0 of")
        await dashboard.register("life", labels=["gpu"])
        node_row, latest_changes = find_row(page, "life"), page.locator(".latest")
        async with dashboard.send_heartbeats("life"):
            await expect(node_row).to_contain_text("Online")
            await expect(latest_changes).to_contain_text("Online: registered")
            before = await node_row.locator(".since").inner_text()
            await expect(node_row.locator(".since")).not_to_have_text(before)
        await expect(latest_changes).to_contain_text("Degraded: missed heartbeats")
        await expect(node_row).to_contain_text("Offline")
        await expect(node_row).to_contain_text("missed heartbeats")
        await expect(page.locator("#announcements")).to_contain_text("life is Offline")
        async with dashboard.send_heartbeats("life", 1000):
            await expect(node_row).to_contain_text("Online")
        await dashboard.execute('mutation { deregisterNode(input: {nodeId: "life"}) { nodeId } }')
        await expect(node_row).to_have_count(0)


async def test_a_change_that_the_query_and_the_stream_both_return_is_listed_once(
    dashboard: Dashboard,
) -> None:
    is_listed = asyncio.Event()
    is_registered = asyncio.Event()

    async def hold_stream(browser: WebSocketRoute) -> None:
        """Deliver the server's messages only once the query has returned the change."""
        server = browser.connect_to_server()
        tasks: list[asyncio.Task[None]] = []

        async def deliver(message: str | bytes) -> None:
            if "NodeStatusChanged" in str(message):
                await is_listed.wait()
            browser.send(message)

        server.on_message(lambda message: tasks.append(asyncio.create_task(deliver(message))))

    async def register_first(route: Route) -> None:
        """Make the change after the page has subscribed, and before the query for the newest."""
        # A page that lost its stream asks again, and the node may be silent by then.
        if "LatestChanges" in str(route.request.post_data) and not is_registered.is_set():
            is_registered.set()
            await dashboard.register("twice")
        await route.continue_()

    async with dashboard.page() as page:
        await page.route_web_socket("**/graphql", hold_stream)
        await page.route("**/graphql", register_first)
        await page.reload()
        await sign_in(page, dashboard.tokens[Role.VIEWER])
        await page.evaluate("window.neverReloaded = true")
        listed = (
            page.locator(".latest li")
            .filter(has_text="Online: registered")
            .filter(has_text="twice")
        )
        await expect(listed).to_have_count(1)
        is_listed.set()
        await dashboard.register("thereafter")  # the stream is in order: all before it has arrived
        await expect(find_row(page, "thereafter")).to_be_visible()
        await expect(listed).to_have_count(1)


@pytest.mark.parametrize("log", ["whole", "trimmed"])
async def test_the_page_catches_up_after_the_registry_is_killed_and_restarted(
    log: str, dashboard: Dashboard
) -> None:
    async with dashboard.page(f"/dashboard?q={log}-") as page:
        await expect(page.locator("#freshness")).to_have_text("Live")
        await dashboard.server.kill()
        stale = page.locator("#freshness.stale")
        await expect(stale).to_have_text(re.compile(r"Cut off: as of .+, \d+ s ago"))
        for node_id in (f"{log}-1", f"{log}-2"):
            await fleet.register(dashboard.database, node_id)
        if log == "trimmed":
            async with dashboard.database.write() as session:
                await session.execute(text(TRIM))
        await dashboard.server.start()
        await dashboard.server.wait_until_ready()
        await expect(find_row(page, f"{log}-1")).to_be_visible()
        await expect(find_row(page, f"{log}-2")).to_be_visible()
        await expect(page.locator("#freshness")).to_have_text("Live")


async def test_a_fleet_that_goes_silent_at_once_raises_an_alarm_until_its_heartbeats_return(
    dashboard: Dashboard,
) -> None:
    node_ids = [f"silent-{number}" for number in range(12)]
    async with dashboard.page("/dashboard?q=silent-") as page:
        await asyncio.gather(*map(dashboard.register, node_ids))
        alarm = page.locator("#alarm")
        await expect(alarm).to_contain_text("Silent nodes are not marked offline")
        await expect(page.locator("#mode")).to_have_text("Protected")
        async with AsyncExitStack() as stack:
            for node_id in node_ids:
                await stack.enter_async_context(dashboard.send_heartbeats(node_id))
            await expect(alarm).to_be_hidden()
            await expect(page.locator("#mode")).to_have_text("Normal")
        for node_id in node_ids:
            await dashboard.execute(DEREGISTER, input={"nodeId": node_id})
        await expect(find_row(page, node_ids[0])).to_have_count(0)


async def test_the_page_of_a_node_shows_its_load_live_and_its_history(dashboard: Dashboard) -> None:
    await dashboard.register(
        "charted", profiles=[{"name": "llama3", "type": "LLM", "config": {"a": 1}}]
    )
    gpu = {"name": "RTX", "utilizationPercent": 71, "memoryTotalMb": 20000, "memoryFreeMb": 9000}
    await dashboard.beat("charted", 1, cpuPercent=42, memoryPercent=50, diskPercent=60, gpus=[gpu])
    async with dashboard.page("/dashboard?node=charted", Role.OPERATOR) as page:
        cpu = page.get_by_role("img", name=re.compile("^CPU: "))
        await expect(cpu).to_have_attribute("aria-label", re.compile("42 % last"))
        await expect(
            page.get_by_role("img", name=re.compile("^GPU load: 71 % last"))
        ).to_be_visible()
        await dashboard.beat(
            "charted", 2, cpuPercent=57, memoryPercent=50, diskPercent=60, gpus=[gpu]
        )
        await expect(cpu).to_have_attribute("aria-label", re.compile("57 % last, between 42 %"))
        await expect(page.locator(".profile")).to_contain_text("llama3")
        await page.get_by_label("Note").fill("new disk")
        await page.get_by_role("button", name="Begin maintenance").click()
        await expect(page.locator(".title .badge")).to_have_text("Maintenance")
        entry = page.locator(".history li").first
        await expect(entry).to_contain_text("maintenance started")
        await expect(entry).to_contain_text("new disk")
        await expect(entry).to_contain_text("by token/the-operator")
        await page.get_by_role("button", name="End maintenance").click()
        await expect(page.locator(".title .badge")).not_to_have_text("Maintenance")
        await expect(page.locator(".availability")).to_contain_text("%")
        await page.get_by_role("button", name="Week").click()
        await expect(cpu).to_have_attribute("aria-label", re.compile("nothing measured"))


async def test_an_action_without_permission_is_rejected_and_changes_nothing(
    dashboard: Dashboard,
) -> None:
    await dashboard.register("kept")
    async with dashboard.page("/dashboard?node=kept") as page:
        await page.get_by_role("button", name="Begin maintenance").click()
        problem = page.locator(".problem").filter(has_text="the role viewer may not")
        await expect(problem).to_contain_text("FORBIDDEN")
        await expect(page.locator(".title .badge")).not_to_have_text("Maintenance")


async def test_filters_are_kept_in_the_url_and_the_keyboard_selects_nodes(
    dashboard: Dashboard,
) -> None:
    await dashboard.register("keys-a", labels=["edge"], role="BACKUP")
    await dashboard.register("keys-b", labels=["edge"])
    async with dashboard.page("/dashboard?q=keys&label=edge&sort=node&desc=1") as page:
        rows = page.locator(".rows .row:not([hidden]) .node b")
        await expect(rows).to_have_text(["keys-b", "keys-a"])
        await page.get_by_label("Role", exact=True).select_option("BACKUP")
        await expect(rows).to_have_text(["keys-a"])
        await expect(page).to_have_url(re.compile("role=backup"))
        await page.get_by_role("button", name="Clear filters").click()
        await page.keyboard.press("/")
        await page.keyboard.type("keys-")
        await expect(rows).to_have_text(["keys-a", "keys-b"])
        await page.keyboard.press("Escape")
        await page.keyboard.press("End")
        await page.keyboard.press("ArrowUp")
        await expect(page.locator(".row.marked .node b")).to_have_text("keys-a")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="keys-a")).to_be_visible()
        await page.go_back()
        await expect(page.get_by_label("Search by node id")).to_have_value("keys-")


async def test_axe_finds_nothing_serious_in_light_and_dark_mode_and_on_a_phone(
    dashboard: Dashboard, tmp_path_factory: pytest.TempPathFactory
) -> None:
    axe = read_axe(tmp_path_factory)
    await dashboard.register("looked-over", labels=["gpu"], capabilities={"models": ["llama3:8b"]})
    await dashboard.beat("looked-over", 1, cpuPercent=42, memoryPercent=50, diskPercent=60)
    async with dashboard.page() as page:
        await page.evaluate(axe)
        await expect(find_row(page, "looked-over")).to_be_visible()
        await check_accessibility(page, "fleet-light")
        await page.emulate_media(color_scheme="dark")
        await check_accessibility(page, "fleet-dark")
        await page.get_by_role("link", name="looked-over").first.click()
        await expect(page.locator(".history li").first).to_be_visible()
        await expect(page.get_by_role("img", name=re.compile("CPU: 42 %"))).to_be_visible()
        await check_accessibility(page, "node-dark")
        await page.emulate_media(color_scheme="light")
        await check_accessibility(page, "node-light")
        await page.set_viewport_size({"width": 390, "height": 844})
        await check_accessibility(page, "node-phone")
        await page.get_by_role("link", name="← Fleet").click()
        await expect(find_row(page, "looked-over")).to_be_visible()
        await check_accessibility(page, "fleet-phone")


def read_axe(folders: pytest.TempPathFactory) -> str:
    folder = npm.install_package("axe", folders.mktemp("axe"))
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


async def check_accessibility(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
    results = await page.evaluate("axe.run({resultTypes: ['violations']})")
    serious = [
        (violation["id"], [node["html"] for node in violation["nodes"]])
        for violation in results["violations"]
        if violation["impact"] in {"serious", "critical"}
    ]
    assert serious == []


MANY = """
INSERT INTO nodes (node_id, node_name, node_role, node_type, status, status_reason, labels)
SELECT 'many-' || n, 'Many ' || n, 'production', 'worker', 'offline', 'seeded', '{many}'
FROM generate_series(10001, 20000) n
"""


async def test_ten_thousand_nodes_render_fewer_than_a_hundred_rows(dashboard: Dashboard) -> None:
    async with dashboard.database.write() as session:
        await session.execute(text(MANY))
    async with dashboard.page("/dashboard?label=many&sort=node") as page:
        table = page.get_by_role("grid")
        await expect(table).to_have_attribute("aria-rowcount", "10001")
        assert await page.locator(".rows .row").count() < 100
        await table.focus()
        await page.keyboard.press("End")
        await expect(page.locator(".row.marked .node b")).to_have_text("many-20000")
        await page.evaluate("document.querySelector('.table').scrollTop = 0")
        await expect(find_row(page, "many-10001")).to_be_visible()
        await page.get_by_label("Search by node id").fill("many-1234")
        await expect(page.locator(".shown")).to_have_text(re.compile(r"^10 of 10,0\d\d nodes$"))
        assert await page.locator(".rows .row").count() < 100
