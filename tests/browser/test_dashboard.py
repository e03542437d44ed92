"""The dashboard in a real browser, of three ranks under the launcher; with ./scripts/test --browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chaoslib.cluster import Cluster
from tests.cluster.harness import environment
from tests.cluster.tiny import make_folder

pytestmark = pytest.mark.browser

playwright = pytest.importorskip("playwright.sync_api", reason="needs ./scripts/test --browser")

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, Page, expect  # noqa: E402

from screenshot_dashboard import SHOTS, browser, chromium, opened  # noqa: E402

DEADLINE_MS = 180_000
# What Chromium itself writes when a request is refused or cut off, as it is while a cluster recovers.
OF_THE_NETWORK = re.compile(r"Failed to load resource|net::ERR_")
TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}

expect.set_options(timeout=DEADLINE_MS)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("dashboard")
    model = make_folder(folder / "model", "qwen3_moe")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    made = Cluster(folder, model, environment({}), ())
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="module")
def running() -> Iterator[Browser]:
    if chromium() is None:
        pytest.skip("no Chromium is installed")
    with browser() as found:
        yield found


class Errors:
    """All that a page complains of."""

    def __init__(self, page: Page) -> None:
        self.of_the_page: list[str] = []
        self.of_the_network: list[str] = []
        page.on("pageerror", lambda error: self.of_the_page.append(str(error)))
        page.on("console", self._console)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            known = OF_THE_NETWORK.search(message.text)
            (self.of_the_network if known else self.of_the_page).append(message.text)


@pytest.fixture
def page(cluster: Cluster, running: Browser) -> Iterator[Page]:
    with opened(running, cluster.url, **SHOTS["light"]) as made:
        expect(made.locator("#story")).to_contain_text("Serving")
        yield made


def names(page: Page) -> list[str]:
    return page.locator(".node-name").all_inner_texts()


def leader(page: Page) -> str:
    return (
        page.locator(".node", has=page.locator(".tag:visible")).locator(".node-name").inner_text()
    )


def ask(page: Page, text: str, tokens: int) -> None:
    page.locator("#most").fill(str(tokens))
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")


def note(page: Page) -> Any:
    return page.locator(".turn.assistant .turn-note").last


def test_it_loads_shows_the_nodes_and_the_chat_answers(cluster: Cluster, running: Browser) -> None:
    with running.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(DEADLINE_MS)
        errors = Errors(page)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(cluster.url)
        expect(page.locator(".node.is-ready")).to_have_count(3)
        assert set(names(page)) == {"mini1", "mini2", "master"}
        expect(page.locator(".ring .arc")).to_have_count(3)
        ask(page, "w5 w6 w7", 8)
        expect(note(page)).to_contain_text("token")
        expect(page.locator(".figure-note").nth(1)).to_contain_text("95 % within")
        assert not errors.of_the_page + errors.of_the_network
        assert all(url.startswith(cluster.url) for url in asked), asked


def test_an_answer_is_stopped_and_a_request_ended_and_the_pipeline_recorded(page: Page) -> None:
    ask(page, "w5 w6 w7", 900)
    expect(page.locator("#requests tbody tr")).to_have_count(1)
    page.get_by_role("button", name="Record").click()
    expect(page.locator("table.shares tbody tr")).to_have_count(3)
    page.locator("canvas").press("+")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(note(page)).to_have_text("Stopped.")
    expect(page.locator("#requests tbody tr")).to_have_count(0)
    ask(page, "w8 w9", 900)
    page.get_by_role("button", name=re.compile("End request")).click()
    expect(note(page)).to_contain_text("cancelled")


def test_a_dynamic_setting_is_changed_and_a_bad_one_refused_with_its_reason(page: Page) -> None:
    page.locator("#setting").select_option("scheduler.max_batch_size")
    for value, told in (("5", "scheduler.max_batch_size is 5."), ("-1", "max_batch_size")):
        page.locator("#value").fill(value)
        page.get_by_role("button", name="Change", exact=True).click()
        expect(page.locator(".operate .said")).to_contain_text(told)


def test_the_killing_of_a_rank_is_shown_and_the_page_recovers(cluster: Cluster, page: Page) -> None:
    errors = Errors(page)
    before = page.locator(".failovers li").count()
    cluster.ranks()[1].kill()
    expect(page.locator("body")).to_have_attribute("data-tone", "bad")
    expect(page.locator("#story")).to_contain_text("Serving")
    expect(page.locator(".failovers li")).to_have_count(before + 1)
    expect(page.locator(".node.is-ready")).to_have_count(3)
    ask(page, "w5 w6", 4)
    expect(note(page)).to_contain_text("token")
    assert not errors.of_the_page


def test_another_node_is_made_to_lead(page: Page) -> None:
    errors = Errors(page)
    other = next(name for name in names(page) if name != leader(page))
    page.locator("#lead").select_option(other)
    page.get_by_role("button", name="Let it lead").click()
    page.get_by_role("dialog").get_by_role("button", name="Change", exact=True).click()
    expect(page.locator("#story")).to_contain_text(f"{other} leads")
    expect(page.locator(".node", has_text=other).locator(".tag")).to_be_visible()
    expect(page.locator(".node.is-ready")).to_have_count(3)
    assert not errors.of_the_page


def test_draining_refuses_and_is_taken_back(cluster: Cluster, page: Page) -> None:
    page.get_by_role("button", name="Drain", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Drain", exact=True).click()
    expect(page.locator("#story")).to_contain_text("Draining")
    body = {"model": "chaos", "prompt": [5], "max_tokens": 1}
    assert httpx.post(f"{cluster.url}/v1/completions", json=body).status_code == 503
    page.get_by_role("button", name="Take requests again").click()
    expect(page.locator("#story")).to_contain_text("Serving")


@pytest.mark.parametrize("shot", SHOTS)
def test_nobody_is_kept_out_and_nothing_sticks_out(
    cluster: Cluster, running: Browser, shot: str, tmp_path: Path
) -> None:
    with opened(running, cluster.url, **SHOTS[shot]) as page:
        expect(page.locator(".node.is-ready")).to_have_count(3)
        ask(page, "w5 w6", 4)
        expect(note(page)).to_contain_text("token")
        result = Axe().run(page, options=RULES)
        assert result.violations_count == 0, result.generate_report()
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, "the page can be scrolled sideways"
