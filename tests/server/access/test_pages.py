"""Pages of other sites in the browser of somebody who runs an open server."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from server.access.errors import OriginRefused
from server.access.pages import Pages

LOCAL = "127.0.0.1:8000"
PAGES = Pages(frozenset({"http://localhost:3000"}))


def served(pages: Pages, method: str, **headers: str) -> bool:
    try:
        pages.check(method, Headers({name.replace("_", "-"): v for name, v in headers.items()}))
    except OriginRefused:
        return False
    return True


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "host", [LOCAL, "localhost:8000", "host.docker.internal:8000", "", "evil.test"]
)
def test_programs_are_served(method: str, host: str) -> None:
    assert served(PAGES, method, host=host)


@pytest.mark.parametrize(
    ("method", "headers", "expected"),
    [
        ("POST", {"origin": f"http://{LOCAL}", "host": LOCAL}, True),
        ("POST", {"origin": "http://[::1]:8000", "host": "[::1]:8000"}, True),
        ("POST", {"origin": "http://localhost:8000", "host": "localhost:8000"}, True),
        ("POST", {"origin": "http://localhost:3000", "host": LOCAL}, True),  # as configured
        ("POST", {"origin": "http://localhost:4000", "host": LOCAL}, False),
        ("POST", {"origin": "https://evil.test", "host": LOCAL}, False),
        ("POST", {"origin": "null", "host": LOCAL}, False),
        ("POST", {"origin": "", "host": LOCAL}, False),
        ("GET", {"origin": "https://evil.test", "host": LOCAL}, False),
        # A name that is made to lead here.
        ("POST", {"origin": "http://evil.test:8000", "host": "evil.test:8000"}, False),
        ("GET", {"sec_fetch_site": "same-origin", "host": "evil.test:8000"}, False),
        ("GET", {"sec_fetch_site": "none", "host": LOCAL}, True),
        (
            "GET",
            {"sec_fetch_site": "cross-site", "host": LOCAL},
            True,
        ),  # a link; it changes nothing
        ("POST", {"sec_fetch_site": "cross-site", "host": LOCAL}, False),
    ],
)
def test_pages(method: str, headers: dict[str, str], expected: bool) -> None:
    assert served(PAGES, method, **headers) == expected


def test_any_page_where_that_is_configured() -> None:
    assert served(Pages(frozenset("*")), "POST", origin="https://evil.test", host=LOCAL)


def test_a_server_for_others_has_a_name() -> None:
    named = Pages(names=True)
    assert served(named, "POST", origin="http://mini1.local:8000", host="mini1.local:8000")
    assert not served(named, "POST", origin="http://evil.test", host="mini1.local:8000")
