"""The page's files: their types, what they may load, and who gets them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from server.access.middleware import Guard
from server.access.policy import AccessPolicy
from server.access.store import KeyStore
from server.dashboard.routes import TYPES, assets, dashboard_routes
from tests.server.access.apps import front_door_app, rank_0_app
from tests.server.access.helpers import add_key

PAGE = Path(__file__).parents[3] / "server/dashboard/page"
APPS = {"rank 0": rank_0_app, "front door": front_door_app}
NAMESPACE = "http://www.w3.org/2000/svg"  # a name, that nobody asks for


@pytest.fixture(params=APPS)
def page(request: pytest.FixtureRequest) -> TestClient:
    return TestClient(APPS[request.param](), base_url="http://127.0.0.1")


def test_the_page_and_each_file_come_with_type_and_policy(page: TestClient) -> None:
    index = page.get("/")
    assert (index.status_code, index.headers["content-type"]) == (200, TYPES[".html"])
    names = {path.name for path in PAGE.iterdir()}
    assert names == set(assets())
    for name in names:
        answer = page.get(f"/dashboard/{name}")
        assert answer.content == (PAGE / name).read_bytes()
        assert answer.headers["content-type"] == TYPES[Path(name).suffix]
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = dict(
            part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
        )
        assert policy.pop("default-src") == "'none'"
        for what in ("script-src", "style-src", "connect-src"):
            assert policy[what] == "'self'"


def test_what_has_not_changed_is_not_sent_again(page: TestClient) -> None:
    tag = page.get("/dashboard/app.js").headers["etag"]
    again = page.get("/dashboard/app.js", headers={"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["nothing.js", "__init__.py", "../routes.py", "%2e%2e%2froutes.py"]
)
def test_no_other_file_can_be_had(page: TestClient, path: str) -> None:
    answer = page.get(f"/dashboard/{path}")
    assert answer.status_code in (404, 503)  # 503: the front door passes it on, and nobody leads
    assert b"def dashboard_routes" not in answer.content


@pytest.mark.parametrize("name", sorted(path.name for path in PAGE.iterdir()))
def test_no_file_names_another_host_or_makes_markup_of_text(name: str) -> None:
    text = (PAGE / name).read_text(encoding="utf-8").replace(NAMESPACE, "")
    assert not re.findall(r"(?:https?:|wss?:)?//[\w-]+\.\w+", text)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    assert not re.findall(r"<[^>]+\s(?:style|on\w+)=", text), "the policy forbids it"


def test_every_module_that_is_imported_is_there() -> None:
    for path in PAGE.glob("*.js"):
        for name in re.findall(r'from "\./([^"]+)"', path.read_text(encoding="utf-8")):
            assert (PAGE / name).is_file(), f"{path.name} imports {name}"
    for name in re.findall(r'(?:src|href)="dashboard/([^"]+)"', (PAGE / "index.html").read_text()):
        assert (PAGE / name).is_file(), name


def guarded(app: object, path: Path) -> TestClient:
    made: Starlette = app(Guard(AccessPolicy(KeyStore(path))))
    return TestClient(made)


@pytest.mark.parametrize("name", APPS)
def test_a_page_without_a_key_learns_that_one_is_needed_and_no_more(
    name: str, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    operator = add_key(keys, "operator", name="Ann")
    page = guarded(APPS[name], keys)
    assert page.get("/").status_code == 200
    assert page.get("/dashboard/about.json").json()["key_needed"] is True
    assert page.get("/v1/access").status_code == 401
    mine = page.get("/v1/access", headers={"authorization": f"Bearer {operator}"})
    assert mine.json()["role"] == "operator"


def test_where_no_key_is_asked_for_everybody_may_do_everything(page: TestClient) -> None:
    assert page.get("/dashboard/about.json").json()["key_needed"] is False
    assert page.get("/v1/access").json() == {"name": "anybody", "role": "admin"}


@pytest.mark.parametrize("launcher", [True, False])
def test_the_page_learns_whether_a_launcher_is_there(launcher: bool) -> None:
    page = TestClient(Starlette(routes=dashboard_routes(launcher=launcher)))
    assert page.get("/dashboard/about.json").json()["launcher"] is launcher


def test_the_launcher_can_serve_it_without_mlx() -> None:
    code = (
        "import sys, server.dashboard\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('mlx', 'mlx_lm')]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
