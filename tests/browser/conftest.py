from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def running() -> Iterator[Browser]:
    from screenshot_dashboard import browser, chromium  # needs the extra `browser`

    if chromium() is None:
        pytest.skip("no Chromium is installed")
    with browser() as found:
        yield found
