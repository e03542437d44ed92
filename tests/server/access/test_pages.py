"""Pages of other sites in the browser of somebody who runs an open server."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from server.access.errors import HostRefused, OriginRefused
from server.access.pages import Pages

LOCAL = "127.0.0.1:8000"
PAGES = Pages(frozenset({"http://localhost:3000"}), frozenset({"llm.test"}))


def served(pages: Pages, method: str, **headers: str) -> bool:
    try:
        pages.check(method, Headers({name.replace("_", "-"): v for name, v in headers.items()}))
    except (HostRefused, OriginRefused):
        return False
    return True


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (LOCAL, True),
        ("localhost:8000", True),
        ("LOCALHOST.", True),
        ("localhost:54321", True),  # the other end of an ssh tunnel
        ("[::1]:8000", True),
        ("[::1]", True),
        ("192.168.1.11:8000", True),  # no name was asked for it
        ("llm.test", True),
        ("LLM.test:8000", True),
        ("", True),  # HTTP/1.0; browsers have left that
        # To a browser, all of this server's own pages: it sends nothing else to know them by.
        ("evil.test:8000", False),
        ("localhost.evil.test", False),
        ("127.0.0.1.evil.test:8000", False),
        ("evil.test:127.0.0.1", False),
        ("localhost:8000@evil.test", False),
        ("localhost:8000, evil.test", False),
    ],
)
def test_the_name_that_it_is_called_by(method: str, host: str, expected: bool) -> None:
    headers = {"host": host} if host else {}
    assert served(PAGES, method, **headers) is expected


def test_one_of_two_names() -> None:
    two = Headers(raw=[(b"host", b"localhost"), (b"host", b"evil.test")])
    with pytest.raises(HostRefused, match="host_names"):
        PAGES.check("GET", two)


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
        ("GET", {"host": "evil.test:8000"}, False),
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


def test_any_page_does_not_mean_any_name() -> None:
    assert not served(Pages(frozenset("*")), "GET", host="evil.test")


def test_a_server_for_others_has_a_name() -> None:
    named = Pages(names=None)
    assert served(named, "POST", origin="http://mini1.local:8000", host="mini1.local:8000")
    assert not served(named, "POST", origin="http://evil.test", host="mini1.local:8000")
