"""The shipped scrape configuration and dashboard, with a real Prometheus and a cluster under load."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.cluster.conftest import Start
from tests.cluster.harness import HOST, ROOT, Cluster, Spec, free_ports, wait_until
from tests.cluster.tiny import make_folder

pytestmark = pytest.mark.prometheus

SHIPPED = ROOT / "config" / "observability"
VARIABLES = {"$__rate_interval": "20s", "$model": ".*"}
BY_PLATFORM = {"Temperature": "temperature_c", "Power": "power_w"}


@contextmanager
def prometheus(cluster: Cluster, folder: Path) -> Iterator[str]:
    """Its address.  The shipped configuration, with the addresses of this cluster and shorter pauses."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed")
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    config["rule_files"] = [str(SHIPPED / name) for name in config["rule_files"]]
    gateway, nodes = config["scrape_configs"]
    gateway["static_configs"] = [{"targets": [f"{HOST}:{cluster.ports.gateway}"]}]
    targets = [f"{HOST}:{health}" for _, _, health in cluster.ports.nodes]
    nodes["static_configs"] = [{"targets": targets}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    [port] = free_ports(1)
    command = [
        binary,
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield f"http://{HOST}:{port}"
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def load(cluster: Cluster, streams: int = 3) -> Iterator[None]:
    """Completions that begin alike, and now and then a request that is refused."""
    over = threading.Event()

    def run(seed: int) -> None:
        with httpx.Client(base_url=cluster.url, timeout=60) as client:
            while not over.is_set():
                body = cluster.body([n % 90 for n in range(40)] + [seed], 12)
                client.post("/v1/completions", json=body)
                client.post("/v1/completions", json={"model": "no-such"})

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(streams)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def expressions() -> list[tuple[str, str]]:
    """Title and query of every line of every panel."""
    panels = json.loads((SHIPPED / "grafana.json").read_text())["panels"]
    found = []
    for panel in panels:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            found.append((panel["title"], expression))
    assert len(found) > 30
    return found


def ask(url: str, expression: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{url}/api/v1/query", params={"query": expression}, timeout=30)
    body = answer.json()
    assert body["status"] == "success", f"{expression}: {body.get('error')}"
    return list(body["data"]["result"])


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").is_success
    except httpx.TransportError:
        return False


def has_values(result: list[dict[str, Any]]) -> bool:
    """Whether there is a series with a number."""
    return any(series["value"][1] != "NaN" for series in result)


def test_every_panel_shows_something_under_load(start: Start, tmp_path: Path) -> None:
    model = make_folder(tmp_path / "model", "llama")
    spec = Spec(
        ranks=2,
        arguments=("--model", str(model)),
        settings=("observe.resource_interval=1", "coordinator.health_check_interval=1"),
    )
    cluster = start(spec).wait_ready()
    with prometheus(cluster, tmp_path) as url, load(cluster):
        wait_until(lambda: is_up(url), "Prometheus is up", 60)
        empty = expressions()

        def all_have_values() -> bool:
            empty[:] = [(t, e) for t, e in empty if not has_values(ask(url, e))]
            resources = [rank["resources"] for rank in cluster.cluster()["ranks"]]
            untold = [
                title
                for title, name in BY_PLATFORM.items()
                if all(r and r[name] is None for r in resources)
            ]
            return all(title in untold for title, _ in empty)

        try:
            wait_until(all_have_values, "all panels show something", 120)
        except AssertionError as error:
            raise AssertionError(f"{error}: {empty}") from None
        up = ask(url, "up")
        assert {series["metric"]["job"]: series["value"][1] for series in up} == {
            "mlxc-cluster": "1",
            "mlxc-node": "1",
        }
        names = {series["metric"]["instance"] for series in up}
        assert len(names) == 3
    cluster.stop()
