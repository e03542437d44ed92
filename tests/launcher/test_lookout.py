"""New nodes with which no ring starts: who is left out, and until when."""

from __future__ import annotations

import asyncio
import io
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.logs import LogStream
from launcher.lookout import Lookout

OLD, NEW = ("a", "b"), ("a", "b", "new")


class Disk:
    """Files that say which nodes there are; `changed` tells it once."""

    def __init__(self) -> None:
        self.found: Any = None

    def changed(self) -> Any:
        found, self.found = self.found, None
        return found

    read = changed


def cluster(names: tuple[str, ...]) -> Any:
    return SimpleNamespace(
        members=[SimpleNamespace(name=n, ssh=n, is_local=n == "a") for n in names]
    )


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Why nobody gets to these nodes."""
    why: dict[str, str] = {}
    monkeypatch.setattr("launcher.probe.why_no_login", lambda host, seconds: why.get(host, ""))
    return why


async def with_new() -> tuple[Lookout, Disk]:
    """A node has come to two that serve, and has been found."""
    disk: Any = Disk()
    lookout = Lookout(
        disk, cluster(OLD), LogStream(out=io.StringIO(), error=io.StringIO()), lambda: None
    )
    disk.found = SimpleNamespace(cluster=cluster(NEW), kept=())
    lookout.changed_files()
    await lookout.look_for(OLD)
    assert lookout.usable == [*NEW]
    return lookout, disk


async def fail(lookout: Lookout) -> None:
    """A start with all of them, as the supervisor takes it in."""
    lookout.search(cluster(NEW).members)
    assert lookout.refuse_new(NEW, "why")
    await lookout.find_lost()


@pytest.mark.parametrize("lost", ["b", "new"])
def test_a_start_that_lost_somebody_is_no_reason_to_leave_out_who_is_new(
    gone: dict[str, str], lost: str
) -> None:
    """But only once: it may be the new one that ends each of them."""

    async def live() -> None:
        lookout, disk = await with_new()
        gone[lost] = "no power"
        await fail(lookout)
        assert lookout.usable == [name for name in NEW if name != lost]
        gone.clear()
        await lookout.look_for(())
        assert lookout.usable == [*NEW]
        gone[lost] = "no power again"
        await fail(lookout)
        assert list(lookout.refused) == ["new"]
        gone.clear()
        await lookout.look_for(())
        assert lookout.usable == [*OLD]
        disk.found = SimpleNamespace(cluster=cluster(NEW), kept=())
        assert lookout.files_for_now() is not None
        assert lookout.usable == [*NEW]
        gone[lost] = "no power"
        await fail(lookout)
        assert not lookout.refused

    asyncio.run(live())


def test_a_start_that_lost_nobody_is(gone: dict[str, str]) -> None:
    """Also if somebody is lost by the end of a later one, of the others."""

    async def live() -> None:
        lookout, _ = await with_new()
        await fail(lookout)
        gone["b"] = "no power"
        lookout.search(cluster(OLD).members)
        await lookout.find_lost()
        assert list(lookout.refused) == ["new"]
        assert lookout.usable == ["a"]

    asyncio.run(live())
