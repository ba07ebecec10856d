"""GraphiQL in a real browser, within its policy."""

import pytest
from playwright.async_api import expect

from tests.support.browser import collect_complaints, run_chromium
from tests.support.live_server import LiveServer

pytestmark = pytest.mark.timeout(600)


async def test_graphiql_runs_an_operation_and_breaks_no_policy(server: LiveServer) -> None:
    async with run_chromium() as browser:
        page = await browser.new_page()
        complaints = collect_complaints(page)
        await page.goto(server.graphql_url)
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Execute query").click()
        await page.get_by_role("menuitem", name="Nodes").click()
        await expect(page.locator(".result-window")).to_contain_text("totalCount", timeout=20_000)
        assert complaints == []


async def test_no_page_can_be_framed(server: LiveServer) -> None:
    async with run_chromium() as browser:
        page = await browser.new_page()
        for path in ("/", "/graphql", "/dashboard"):
            await page.set_content(f'<iframe src="{server.url}{path}"></iframe>')
            await page.wait_for_load_state("networkidle")
            [_, frame] = page.frames
            assert frame.url.startswith("chrome-error:")
