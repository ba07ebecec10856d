"""The dashboard as an operator meets it: a real browser, a real registry, no reload in between."""

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
from tests.support.keyring import ADMIN
from tests.support.live_server import NO_TLS
from tests.support.paths import ROOT
from tests.support.registry_process import Server, find_free_port

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
"""Whoever had followed the log before cannot go on with what is left of it."""

expect.set_options(timeout=20_000)


@dataclass
class Desk:
    """What the tests share: they leave each other nothing but nodes of other names."""

    server: Server
    database: Database
    browser: Browser
    keys: dict[Role, str]

    async def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """As an administrator."""
        headers = {"authorization": f"Bearer {self.keys[Role.ADMIN]}"}
        async with httpx.AsyncClient(
            base_url=self.server.url, headers=headers, verify=NO_TLS
        ) as http:
            response = await http.post("/graphql", json={"query": query, "variables": variables})
        body = response.json()
        assert "errors" not in body, body["errors"]
        data: dict[str, Any] = body["data"]
        return data

    async def register(self, node_id: str, **said: Any) -> None:
        node = {"nodeId": node_id, "role": "PRODUCTION", "type": "WORKER", "bootId": "b", **said}
        await self.ask(REGISTER, input=node)

    @asynccontextmanager
    async def beating(self, node_id: str, first: int = 1) -> AsyncIterator[None]:
        """Keeps it alive meanwhile."""

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
        await self.ask(BEAT, input=beat)

    @asynccontextmanager
    async def page(
        self, address: str = "/dashboard", role: Role = Role.VIEWER, **options: Any
    ) -> AsyncIterator[Page]:
        """Signed in; what the browser finds wrong with it fails the test."""
        context = await self.browser.new_context(
            **{"base_url": self.server.url, "viewport": WALL, **options}
        )
        try:
            page = await context.new_page()
            found = collect_complaints(page)
            await page.goto(address)
            await sign_in(page, self.keys[role])
            await page.evaluate("window.neverReloaded = true")
            yield page
            assert await page.evaluate("window.neverReloaded")
            assert found == []
        finally:
            await context.close()


async def sign_in(page: Page, key: str) -> None:
    await page.get_by_label("API key or token").fill(key)
    await page.get_by_role("dialog").get_by_role("button", name="Sign in").click()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(
    shared_database_url: URL, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Desk]:
    url = shared_database_url
    async with run_chromium() as browser:
        database = Database(url)
        keys = {}
        async with database.write() as session:
            for role in (Role.VIEWER, Role.OPERATOR, Role.ADMIN):
                made = await token_changes.create_token(
                    session, role=role, name=f"the-{role}", lifetime=timedelta(days=1), caller=ADMIN
                )
                keys[role] = made.text
        address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        folder = tmp_path_factory.mktemp("dashboard")
        settings = {"NODE_REGISTRY_DATABASE_URL": address, "NODE_REGISTRY_DATA_DIR": str(folder)}
        server = Server(find_free_port(), FAST | settings)
        await server.start()
        try:
            await server.answers()
            yield Desk(server, database, browser, keys)
        finally:
            await server.kill()
            await database.close()


def row(page: Page, node_id: str) -> Any:
    return page.get_by_role("row").filter(has=page.get_by_text(node_id, exact=True))


async def test_a_key_is_asked_for_and_kept_in_memory_alone(desk: Desk) -> None:
    async with desk.page() as page:
        await expect(row(page, "node-1-hetzner-gex44")).to_contain_text("Offline")
        await expect(page.locator("#freshness")).to_have_text("Live")
        kept = "[localStorage.length, sessionStorage.length, document.cookie]"
        assert await page.evaluate(kept) == [0, 0, ""]
        await page.reload()
        await expect(page.get_by_role("dialog")).to_be_visible()
        await sign_in(page, "nrk_nonsense")
        await expect(page.get_by_role("alert")).to_contain_text(
            "the token is not one of this registry"
        )
        await expect(row(page, "node-1-hetzner-gex44")).to_have_count(0)
        await page.evaluate("window.neverReloaded = true")


async def test_a_fault_of_the_registry_signs_nobody_out(desk: Desk) -> None:
    fault = {"message": "internal error", "extensions": {"code": "INTERNAL", "retryable": False}}
    async with desk.page() as page:
        await expect(page.locator("#freshness")).to_have_text("Live")
        await page.route("**/graphql", lambda route: route.fulfill(json={"errors": [fault]}))
        await expect(page.locator("#freshness")).to_contain_text("Cut off")
        await page.unroute("**/graphql")
        await expect(page.locator("#freshness")).to_have_text("Live")
        await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_a_node_appears_degrades_goes_offline_and_comes_back_without_a_reload(
    desk: Desk,
) -> None:
    async with desk.page("/dashboard?q=life") as page:
        await expect(page.locator(".shown")).to_contain_text("0 of")
        await desk.register("life", labels=["gpu"])
        shown, story = row(page, "life"), page.locator(".latest")
        async with desk.beating("life"):
            await expect(shown).to_contain_text("Online")
            await expect(story).to_contain_text("Online: registered")
            before = await shown.locator(".since").inner_text()
            await expect(shown.locator(".since")).not_to_have_text(before)
        await expect(story).to_contain_text("Degraded: missed heartbeats")
        await expect(shown).to_contain_text("Offline")
        await expect(shown).to_contain_text("missed heartbeats")
        await expect(page.locator("#announcements")).to_contain_text("life is Offline")
        async with desk.beating("life", 1000):
            await expect(shown).to_contain_text("Online")
        await desk.ask('mutation { deregisterNode(input: {nodeId: "life"}) { nodeId } }')
        await expect(shown).to_have_count(0)


async def test_a_change_that_the_query_and_the_stream_both_return_is_listed_once(
    desk: Desk,
) -> None:
    is_listed = asyncio.Event()

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
        if "LatestChanges" in str(route.request.post_data):
            await desk.register("twice")
        await route.continue_()

    async with desk.page() as page:
        await page.route_web_socket("**/graphql", hold_stream)
        await page.route("**/graphql", register_first)
        await page.reload()
        await sign_in(page, desk.keys[Role.VIEWER])
        await page.evaluate("window.neverReloaded = true")
        listed = (
            page.locator(".latest li")
            .filter(has_text="Online: registered")
            .filter(has_text="twice")
        )
        await expect(listed).to_have_count(1)
        is_listed.set()
        await desk.register("thereafter")  # the stream is in order: all before it has arrived
        await expect(row(page, "thereafter")).to_be_visible()
        await expect(listed).to_have_count(1)


@pytest.mark.parametrize("log", ["whole", "trimmed"])
async def test_the_registry_is_killed_and_started_again_and_the_page_catches_up(
    log: str, desk: Desk
) -> None:
    async with desk.page(f"/dashboard?q={log}-") as page:
        await expect(page.locator("#freshness")).to_have_text("Live")
        await desk.server.kill()
        stale = page.locator("#freshness.stale")
        await expect(stale).to_have_text(re.compile(r"Cut off: as of .+, \d+ s ago"))
        for node_id in (f"{log}-1", f"{log}-2"):
            await fleet.register(desk.database, node_id)
        if log == "trimmed":
            async with desk.database.write() as session:
                await session.execute(text(TRIM))
        await desk.server.start()
        await desk.server.answers()
        await expect(row(page, f"{log}-1")).to_be_visible()
        await expect(row(page, f"{log}-2")).to_be_visible()
        await expect(page.locator("#freshness")).to_have_text("Live")


async def test_a_fleet_that_falls_silent_at_once_raises_an_alarm_until_it_is_heard_again(
    desk: Desk,
) -> None:
    node_ids = [f"silent-{number}" for number in range(12)]
    async with desk.page("/dashboard?q=silent-") as page:
        await asyncio.gather(*map(desk.register, node_ids))
        alarm = page.locator("#alarm")
        await expect(alarm).to_contain_text("Silent nodes are not marked offline")
        await expect(page.locator("#mode")).to_have_text("Protected")
        async with AsyncExitStack() as stack:
            for node_id in node_ids:
                await stack.enter_async_context(desk.beating(node_id))
            await expect(alarm).to_be_hidden()
            await expect(page.locator("#mode")).to_have_text("Normal")
        for node_id in node_ids:
            await desk.ask(DEREGISTER, input={"nodeId": node_id})
        await expect(row(page, node_ids[0])).to_have_count(0)


async def test_a_nodes_page_charts_its_load_live_and_tells_its_story(desk: Desk) -> None:
    await desk.register("charted", profiles=[{"name": "llama3", "type": "LLM", "config": {"a": 1}}])
    gpu = {"name": "RTX", "utilizationPercent": 71, "memoryTotalMb": 20000, "memoryFreeMb": 9000}
    await desk.beat("charted", 1, cpuPercent=42, memoryPercent=50, diskPercent=60, gpus=[gpu])
    async with desk.page("/dashboard?node=charted", Role.OPERATOR) as page:
        cpu = page.get_by_role("img", name=re.compile("^CPU: "))
        await expect(cpu).to_have_attribute("aria-label", re.compile("42 % last"))
        await expect(
            page.get_by_role("img", name=re.compile("^GPU load: 71 % last"))
        ).to_be_visible()
        await desk.beat("charted", 2, cpuPercent=57, memoryPercent=50, diskPercent=60, gpus=[gpu])
        await expect(cpu).to_have_attribute("aria-label", re.compile("57 % last, between 42 %"))
        await expect(page.locator(".profile")).to_contain_text("llama3")
        await page.get_by_label("Note").fill("new disk")
        await page.get_by_role("button", name="Begin maintenance").click()
        await expect(page.locator(".title .badge")).to_have_text("Maintenance")
        entry = page.locator(".history li").first
        await expect(entry).to_contain_text("maintenance started")
        await expect(entry).to_contain_text("new disk")
        await expect(entry).to_contain_text("by the-operator")
        await page.get_by_role("button", name="End maintenance").click()
        await expect(page.locator(".title .badge")).not_to_have_text("Maintenance")
        await expect(page.locator(".availability")).to_contain_text("%")
        await page.get_by_role("button", name="Week").click()
        await expect(cpu).to_have_attribute("aria-label", re.compile("nothing measured"))


async def test_who_may_not_is_told_so_and_nothing_changes(desk: Desk) -> None:
    await desk.register("kept")
    async with desk.page("/dashboard?node=kept") as page:
        await page.get_by_role("button", name="Begin maintenance").click()
        refused = page.locator(".problem").filter(has_text="the role viewer may not")
        await expect(refused).to_contain_text("FORBIDDEN")
        await expect(page.locator(".title .badge")).not_to_have_text("Maintenance")


async def test_filters_are_in_the_address_and_the_keyboard_does_it_all(desk: Desk) -> None:
    await desk.register("keys-a", labels=["edge"], role="BACKUP")
    await desk.register("keys-b", labels=["edge"])
    async with desk.page("/dashboard?q=keys&label=edge&sort=node&desc=1") as page:
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


async def test_axe_finds_nothing_serious_by_day_by_night_and_on_a_phone(
    desk: Desk, tmp_path_factory: pytest.TempPathFactory
) -> None:
    axe = _axe(tmp_path_factory)
    await desk.register("looked-over", labels=["gpu"], capabilities={"models": ["llama3:8b"]})
    await desk.beat("looked-over", 1, cpuPercent=42, memoryPercent=50, diskPercent=60)
    async with desk.page() as page:
        await page.evaluate(axe)
        await expect(row(page, "looked-over")).to_be_visible()
        await _look_over(page, "fleet-light")
        await page.emulate_media(color_scheme="dark")
        await _look_over(page, "fleet-dark")
        await page.get_by_role("link", name="looked-over").first.click()
        await expect(page.locator(".history li").first).to_be_visible()
        await expect(page.get_by_role("img", name=re.compile("CPU: 42 %"))).to_be_visible()
        await _look_over(page, "node-dark")
        await page.emulate_media(color_scheme="light")
        await _look_over(page, "node-light")
        await page.set_viewport_size({"width": 390, "height": 844})
        await _look_over(page, "node-phone")
        await page.get_by_role("link", name="← Fleet").click()
        await expect(row(page, "looked-over")).to_be_visible()
        await _look_over(page, "fleet-phone")


def _axe(folders: pytest.TempPathFactory) -> str:
    folder = npm.install_package("axe", folders.mktemp("axe"))
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


async def _look_over(page: Page, name: str) -> None:
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


async def test_ten_thousand_nodes_are_as_few_elements_as_a_hundred(desk: Desk) -> None:
    async with desk.database.write() as session:
        await session.execute(text(MANY))
    async with desk.page("/dashboard?label=many&sort=node") as page:
        table = page.get_by_role("grid")
        await expect(table).to_have_attribute("aria-rowcount", "10001")
        assert await page.locator(".rows .row").count() < 100
        await table.focus()
        await page.keyboard.press("End")
        await expect(page.locator(".row.marked .node b")).to_have_text("many-20000")
        await page.evaluate("document.querySelector('.table').scrollTop = 0")
        await expect(row(page, "many-10001")).to_be_visible()
        await page.get_by_label("Search by node id").fill("many-1234")
        await expect(page.locator(".shown")).to_have_text(re.compile(r"^10 of 10,0\d\d nodes$"))
        assert await page.locator(".rows .row").count() < 100
