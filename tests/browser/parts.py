"""What tests of the dashboard share: a cluster with two models that never end a text, and looks at a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from chaoslib.cluster import Cluster
from tests.cluster.harness import environment
from tests.cluster.tiny import make_folder, tokenizer

DEADLINE_MS = 180_000
LONG = (
    8192  # tokens, the most that the page asks for: nothing ends by itself while a test looks at it
)
OTHER = "another-model"
# What Chromium itself writes when a request is refused or cut off, as it is while a cluster recovers.
OF_THE_NETWORK = re.compile(r"Failed to load resource|net::ERR_")
TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}

expect.set_options(timeout=DEADLINE_MS)


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


class Supervised(Cluster):
    """Three ranks under the launcher, with another model to switch to."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.other = endless_model(folder / "other")
        super().__init__(folder, endless_model(folder / "model"), environment({}), settings)

    def _write_config(self) -> None:
        super()._write_config()
        path = self.folder / "config" / "models.yaml"
        models = yaml.safe_load(path.read_text())
        models["models"][OTHER] = {"source": str(self.other)}
        path.write_text(yaml.safe_dump(models))


def endless_model(folder: Path) -> Path:
    """A tiny one with a chat template, room for LONG, and no token that ends a text."""
    model = make_folder(folder, "qwen3_moe")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    path = model / "config.json"
    config = json.loads(path.read_text())
    beyond = config["vocab_size"]
    path.write_text(
        json.dumps(config | {"max_position_embeddings": 4 * LONG, "eos_token_id": beyond})
    )
    tokenizer(beyond + 1).save_pretrained(model)
    return model


def assert_nobody_is_kept_out(page: Page) -> None:
    """As far as axe can tell."""
    result = Axe().run(page, options=RULES)
    assert result.violations_count == 0, result.generate_report()


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


def note(page: Page) -> Locator:
    return page.locator(".turn.assistant .turn-note").last


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def confirm(page: Page, action: str) -> None:
    page.get_by_role("dialog").get_by_role("button", name=action, exact=True).click()
