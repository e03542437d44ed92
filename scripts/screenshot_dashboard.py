"""Screenshots of the dashboard of a running cluster: light, dark, and on a phone.

.venv/bin/python scripts/screenshot_dashboard.py --url http://127.0.0.1:8000 FOLDER

Needs the extra `browser` of this project, and Chromium; what needs a key takes it from $MLXC_API_KEY.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from config import program

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
QUIET = (  # a browser that asks nobody but the page's server
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SHOTS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1360, "height": 1290}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1360, "height": 1290}},
    "phone": {
        "color_scheme": "light",
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 2,
        "is_mobile": True,
        "has_touch": True,
    },
}
DEADLINE_MS = 120_000
KEY = "mlx-cluster-key"  # as the page calls it
QUESTION = "Tell me a short story about three computers."


def chromium() -> str | None:
    """The browser's program, None where there is none."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    return found or (str(MAC) if MAC.exists() else None)


@contextmanager
def browser() -> Iterator[Browser]:
    """Without a window."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=chromium(), headless=True, args=list(QUIET)
        )
        try:
            yield running
        finally:
            running.close()


@contextmanager
def opened(running: Browser, url: str, **context: Any) -> Iterator[Page]:
    """The dashboard in a window of its own."""
    with running.new_context(**context) as made:
        made.set_default_timeout(DEADLINE_MS)
        key = os.environ.get("MLXC_API_KEY")
        if key:
            made.add_init_script(f"sessionStorage.setItem({KEY!r}, {key!r})")
        page = made.new_page()
        page.goto(url)
        yield page


def at_work(page: Page) -> None:
    """Let it answer, and record what the stages do meanwhile."""
    page.locator("#story", has_text="Serving").wait_for()
    page.locator("#prompt").fill(QUESTION)
    page.get_by_role("button", name="Send").click()
    page.locator(".turn.assistant .turn-text", has_text=" ").wait_for()
    page.get_by_role("button", name="Record").click()
    page.locator("table.shares, #timeline [role=status]:has-text('could')").first.wait_for()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the gateway")
    parser.add_argument("--idle", action="store_true", help="ask the model nothing")
    parser.add_argument(
        "--full", action="store_true", help="the whole page, not what fits a window"
    )
    parser.add_argument("folder", type=Path, help="where light.png, dark.png and phone.png go")
    args = parser.parse_args()
    if chromium() is None:
        print(f"error: none of {', '.join(PROGRAMS)} is installed", file=sys.stderr)
        return 1
    args.folder.mkdir(parents=True, exist_ok=True)
    with browser() as running:
        for name, context in SHOTS.items():
            with opened(running, args.url, **context) as page:
                page.locator(".node").first.wait_for()
                if not args.idle:
                    at_work(page)
                page.evaluate("scrollTo(0, 0)")
                path = args.folder / f"{name}.png"
                page.screenshot(path=path, full_page=args.full, animations="disabled")
                print(path)
    return 0


if __name__ == "__main__":
    sys.exit(program.run(main))
