"""What is seen of a machine, and what a platform does not tell."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from server.observe import resources
from server.observe.resources import RaplMeter, ResourceMonitor, hottest

pytestmark = pytest.mark.anyio

DEADLINE = 60.0  # seconds


def test_a_look_at_this_machine(tmp_path: Path) -> None:
    seen = ResourceMonitor(tmp_path).look()
    assert seen.cores >= 1
    assert 0 < seen.memory_used < seen.memory_total
    assert 0 < seen.disk_used < seen.disk_total
    assert seen.process_memory > 1 << 20
    assert 0 <= seen.cpu_percent <= 100


async def test_it_looks_again_and_survives_a_disk_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = ResourceMonitor(tmp_path)
    looks = 0

    def usage(path: str) -> object:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise FileNotFoundError(path)
        return SimpleNamespace(used=1, free=3)

    monkeypatch.setattr(psutil, "disk_usage", usage)
    task = asyncio.create_task(monitor.run(0.01))
    try:

        async def poll() -> None:
            while monitor.latest is None:
                await asyncio.sleep(0.01)

        await asyncio.wait_for(poll(), DEADLINE)
    finally:
        task.cancel()
    assert monitor.latest is not None
    assert (monitor.latest.disk_used, monitor.latest.disk_total) == (1, 4)


def test_the_hottest_sensor_is_told_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [SimpleNamespace(current=value) for value in (41.0, None, 62.5, -3.0)]
    monkeypatch.setattr(
        psutil, "sensors_temperatures", lambda: {"cpu": entries[:2], "disk": entries[2:]}, False
    )
    assert hottest() == 62.5
    monkeypatch.setattr(psutil, "sensors_temperatures", dict, False)
    assert hottest() is None
    monkeypatch.delattr(psutil, "sensors_temperatures")
    assert hottest() is None


def test_power_is_the_mean_between_two_looks(tmp_path: Path) -> None:
    now = 10.0
    counter = tmp_path / "energy_uj"
    meter = RaplMeter(tmp_path, lambda: now)
    counter.write_text("1000000\n")
    assert meter() is None
    now, _ = 12.0, counter.write_text("51000000\n")
    assert meter() == 25.0
    now, _ = 13.0, counter.write_text("5\n")
    assert meter() is None  # the counter has begun anew
    now, _ = 14.0, counter.write_text("7000005\n")
    assert meter() == 7.0
    counter.unlink()
    assert meter() is None


def test_power_where_nothing_tells_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resources, "RAPL", tmp_path / "missing")
    monkeypatch.setattr("sys.platform", "linux")
    assert resources.power_meter()() is None
