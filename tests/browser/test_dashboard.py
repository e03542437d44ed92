"""The dashboard in a real browser, of three ranks under the launcher; with ./scripts/test --browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.browser

playwright = pytest.importorskip("playwright.sync_api", reason="needs ./scripts/test --browser")

from playwright.sync_api import Browser, Locator, Page, expect  # noqa: E402

from chaoslib.cluster import MODEL  # noqa: E402
from screenshot_dashboard import SHOTS, opened  # noqa: E402
from tests.browser.parts import (  # noqa: E402
    DEADLINE_MS,
    LONG,
    OTHER,
    Errors,
    Supervised,
    ask,
    assert_nobody_is_kept_out,
    button,
    confirm,
    leader,
    names,
    note,
)

MOST_STOPS = 100  # of the tab key, once round the page
CONTROLS = "a[href], button, input, select, textarea, canvas, [tabindex='0']"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    made = Supervised(tmp_path_factory.mktemp("dashboard"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture
def page(cluster: Supervised, running: Browser) -> Iterator[Page]:
    with opened(running, cluster.url, **SHOTS["light"]) as made:
        expect(made.locator("#story")).to_contain_text("Serving")
        expect(made.locator(".node.is-ready")).to_have_count(3)
        yield made


def test_it_loads_shows_the_nodes_and_the_chat_answers(
    cluster: Supervised, running: Browser
) -> None:
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
    ask(page, "w5 w6 w7", LONG)
    expect(page.locator("#requests tbody tr")).to_have_count(1)
    page.locator("#seconds").select_option("1")
    button(page, "Record").click()
    expect(page.locator("table.shares tbody tr")).to_have_count(3)
    page.locator("canvas").press("+")
    button(page, "Stop").click()
    expect(note(page)).to_have_text("Stopped.")
    expect(page.locator("#requests tbody tr")).to_have_count(0)
    ask(page, "w8 w9", LONG)
    page.get_by_role("button", name=re.compile("End request")).click()
    expect(note(page)).to_contain_text("cancelled")


def test_a_dynamic_setting_is_changed_and_a_bad_one_refused_with_its_reason(page: Page) -> None:
    page.locator("#setting").select_option("scheduler.max_batch_size")
    for value, told in (("5", "scheduler.max_batch_size is 5."), ("-1", "max_batch_size")):
        page.locator("#value").fill(value)
        button(page, "Change").click()
        expect(page.locator(".operate .said")).to_contain_text(told)


def test_all_of_it_is_there_without_a_mouse(page: Page) -> None:
    reached = tab_round(page)
    assert not [text for text in reached if not text["outlined"]], "where one is must be seen"
    there = page.evaluate(
        f"""[...document.querySelectorAll({CONTROLS!r})]
            .filter((each) => each.checkVisibility() && !each.disabled).length"""
    )
    assert len(reached) == there
    tab_to(page, page.locator("#most"))
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(str(LONG))
    page.keyboard.press("Shift+Tab")
    tab_to(page, page.locator("#prompt"), back=True)
    page.keyboard.type("w5 w6 w7")
    page.keyboard.press("Enter")
    tab_to(page, button(page, "Stop"))
    page.keyboard.press("Enter")
    expect(note(page)).to_have_text("Stopped.")
    expect(button(page, "Send")).to_be_focused()
    for leave in ("Escape", "Enter"):  # the first is the way out, and where the focus is
        tab_to(page, button(page, "Drain"))
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press(leave)
        expect(page.get_by_role("dialog")).to_be_hidden()
        expect(button(page, "Drain")).to_be_focused()
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_role("dialog").get_by_role("button", name="Drain"), back=True)
    page.keyboard.press("Enter")
    expect(page.locator("#story")).to_contain_text("Draining")
    page.keyboard.press("Enter")  # the same button takes it back
    expect(page.locator("#story")).to_contain_text("Serving")


def tab_round(page: Page) -> list[dict[str, object]]:
    """Every stop of the tab key, once."""
    page.evaluate("document.activeElement.blur()")
    found: list[dict[str, object]] = []
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            """() => {
                const at = document.activeElement;
                if (at === document.body || at.dataset.reached) return null;
                at.dataset.reached = "yes";
                const outlined = getComputedStyle(at).outlineStyle !== "none";
                return { what: at.outerHTML.slice(0, 80), outlined };
            }"""
        )
        if stop is None:
            return found
        found.append(stop)
    raise AssertionError(f"more than {MOST_STOPS} stops: {found}")


def tab_to(page: Page, where: Locator, *, back: bool = False) -> None:
    where.wait_for()
    for _ in range(MOST_STOPS):
        if where.evaluate("(each) => each === document.activeElement"):
            return
        page.keyboard.press("Shift+Tab" if back else "Tab")
    raise AssertionError(f"{where} can't be reached")


def test_the_killing_of_a_rank_is_shown_and_the_page_recovers(
    cluster: Supervised, page: Page
) -> None:
    errors = Errors(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(cluster.url)))
    before = page.locator(".failovers li").count()
    cluster.ranks()[1].kill()
    expect(page.locator("body")).to_have_attribute("data-tone", "bad")
    expect(page.locator("#story")).to_contain_text("Serving")
    expect(page.locator(".failovers li")).to_have_count(before + 1)
    expect(page.locator(".node.is-ready")).to_have_count(3)
    assert "/admin/status" not in asked, "what happens is told, not asked for"
    assert "/v1/cluster/events" not in asked, "the stream outlives the failover"
    ask(page, "w5 w6", 4)
    expect(note(page)).to_contain_text("token")
    assert not errors.of_the_page


def test_an_answer_goes_on_after_the_leader_was_killed(cluster: Supervised, page: Page) -> None:
    ask(page, "w5 w6 w7", LONG)
    expect(page.locator("#requests tbody tr")).to_have_count(1)
    cluster.ranks()[0].kill()
    expect(page.locator("body")).to_have_attribute("data-tone", "bad")
    expect(page.locator("#story")).to_contain_text("Serving")
    expect(page.locator("#requests tbody tr")).to_have_count(1)
    button(page, "Stop").click()
    expect(note(page)).to_have_text("Stopped.")


def test_another_node_is_made_to_lead(page: Page) -> None:
    errors = Errors(page)
    other = next(name for name in names(page) if name != leader(page))
    page.locator("#lead").select_option(other)
    button(page, "Let it lead").click()
    confirm(page, "Change")
    expect(page.locator("#story")).to_contain_text(f"{other} leads")
    expect(page.locator(".node", has_text=other).locator(".tag")).to_be_visible()
    expect(page.locator(".node.is-ready")).to_have_count(3)
    assert not errors.of_the_page


def test_draining_refuses_and_is_taken_back(cluster: Supervised, page: Page) -> None:
    button(page, "Drain").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert_nobody_is_kept_out(page)
    confirm(page, "Drain")
    expect(page.locator("#story")).to_contain_text("Draining")
    body = {"model": MODEL, "prompt": [5], "max_tokens": 1}
    assert httpx.post(f"{cluster.url}/v1/completions", json=body).status_code == 503
    button(page, "Take requests again").click()
    expect(page.locator("#story")).to_contain_text("Serving")


def test_another_model_is_loaded_and_answers(page: Page) -> None:
    errors = Errors(page)
    for model in (OTHER, MODEL):
        page.locator("#model").select_option(model)
        button(page, "Load it").click()
        confirm(page, "Load it")
        expect(page.locator("#story")).to_contain_text(f"Serving {model} on 3 nodes")
        ask(page, "w5 w6", 4)
        expect(note(page)).to_contain_text("token")
    assert not errors.of_the_page


@pytest.mark.parametrize("shot", SHOTS)
def test_nobody_is_kept_out_and_nothing_sticks_out(
    cluster: Supervised, running: Browser, shot: str, tmp_path: Path
) -> None:
    with opened(running, cluster.url, **SHOTS[shot]) as page:
        expect(page.locator(".node.is-ready")).to_have_count(3)
        ask(page, "w5 w6", 4)
        expect(note(page)).to_contain_text("token")
        assert_nobody_is_kept_out(page)
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, "the page can be scrolled sideways"
