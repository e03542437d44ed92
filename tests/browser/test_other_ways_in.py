"""The dashboard where keys are asked for, and of a server without a launcher; with ./scripts/test --browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

playwright = pytest.importorskip("playwright.sync_api", reason="needs ./scripts/test --browser")

from playwright.sync_api import Browser, Page, expect  # noqa: E402

from screenshot_dashboard import SHOTS, opened  # noqa: E402
from server.access.cluster_secret import ensure_secret  # noqa: E402
from tests.browser.parts import (  # noqa: E402
    Errors,
    Supervised,
    ask,
    assert_nobody_is_kept_out,
    button,
    endless_model,
    note,
)
from tests.cluster import harness  # noqa: E402
from tests.server.access.helpers import add_key  # noqa: E402


class Guarded(Supervised):
    """It asks for keys."""

    def __init__(self, folder: Path) -> None:
        keys, secret = folder / "keys.json", folder / "secret"
        self.keys = {role: add_key(keys, role, name="Ann") for role in ("viewer", "operator")}
        ensure_secret(secret)
        super().__init__(
            folder,
            "access.enabled=true",
            f"access.keys_file={keys}",
            f"access.cluster_secret_file={secret}",
        )
        self.credentials = {"authorization": f"Bearer {self.keys['viewer']}"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    made = Guarded(tmp_path_factory.mktemp("guarded"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


def enter(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_label("API key").press("Enter")


def test_a_key_is_asked_for_and_what_it_opens_is_shown(guarded: Guarded, running: Browser) -> None:
    with opened(running, guarded.url, **SHOTS["light"]) as page:
        errors = Errors(page)
        expect(page.locator("#story")).to_contain_text("A key is needed")
        expect(page.locator("main")).to_be_hidden()
        assert_nobody_is_kept_out(page)
        enter(page, "no-key-of-this-cluster")
        expect(page.locator("#key-why")).to_contain_text("key")
        expect(page.locator("main")).to_be_hidden()
        enter(page, guarded.keys["operator"])
        expect(page.locator(".node.is-ready")).to_have_count(3)
        expect(page.locator(".who")).to_have_text("Ann, operator")
        ask(page, "w5 w6", 4)
        expect(note(page)).to_contain_text("token")
        button(page, "Forget the key").click()
        expect(page.locator("#story")).to_contain_text("A key is needed")
        assert not errors.of_the_page


def test_a_viewer_sees_all_and_is_offered_nothing_that_is_refused(
    guarded: Guarded, running: Browser
) -> None:
    with opened(running, guarded.url, **SHOTS["light"]) as page:
        enter(page, guarded.keys["viewer"])
        expect(page.locator(".node.is-ready")).to_have_count(3)
        expect(page.locator("#chat")).to_contain_text("takes a key with the role user")
        expect(page.locator("#prompt")).to_be_hidden()
        expect(page.locator("#operate")).to_be_hidden()


def test_who_is_in_stays_in_after_a_failover(guarded: Guarded, running: Browser) -> None:
    with opened(running, guarded.url, **SHOTS["light"]) as page:
        enter(page, guarded.keys["operator"])
        expect(page.locator(".node.is-ready")).to_have_count(3)
        guarded.ranks()[0].kill()
        expect(page.locator(".failovers li")).to_have_count(1)
        expect(page.locator(".node.is-ready")).to_have_count(3)
        expect(page.locator(".who")).to_have_text("Ann, operator")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[harness.Cluster]:
    folder = tmp_path_factory.mktemp("bare")
    models = harness.folder_model(endless_model(folder / "model"))
    made = harness.Cluster(harness.Spec(ranks=3, models=models), folder)
    try:
        yield made.start().wait_ready()
    finally:
        made.kill()


def test_without_a_launcher_all_but_its_part_is_there(
    bare: harness.Cluster, running: Browser
) -> None:
    with opened(running, bare.url, **SHOTS["light"]) as page:
        errors = Errors(page)
        expect(page.locator("#story")).to_contain_text("Serving m on 3 nodes, n0 leads")
        expect(page.locator(".node.is-ready")).to_have_count(3)
        expect(page.locator("#operate")).to_contain_text("this server runs without it")
        expect(button(page, "Drain")).to_be_hidden()
        page.locator("#setting").select_option("scheduler.max_batch_size")
        page.locator("#value").fill("5")
        button(page, "Change").click()
        expect(page.locator(".operate .said")).to_have_text("scheduler.max_batch_size is 5.")
        ask(page, "w5 w6 w7", 8)
        expect(note(page)).to_contain_text("token")
        assert not errors.of_the_page + errors.of_the_network


def test_a_server_that_ends_and_comes_back_is_found_again(
    bare: harness.Cluster, running: Browser
) -> None:
    with opened(running, bare.url, **SHOTS["light"]) as page:
        expect(page.locator("#story")).to_contain_text("Serving")
        bare.kill()
        expect(page.locator("#story")).to_contain_text("does not answer")
        bare.start().wait_ready()
        expect(page.locator("#story")).to_contain_text("Serving")
        expect(page.locator(".node.is-ready")).to_have_count(3)
