"""Which nodes of a broken epoch are looked for again before they are left out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from config import load
from launcher import probe
from launcher.nodes import Cluster, Member
from launcher.probe import LOGIN_PATIENCE, LOST_PATIENCE, LostNodes

NAMES = ("mini1", "mini2", "master")


@pytest.fixture
def members(tmp_path: Path) -> Sequence[Member]:
    path = tmp_path / "hostfile.json"
    hosts = [f'{{"ssh": "{name}", "ips": ["10.0.0.{n}"]}}' for n, name in enumerate(NAMES)]
    path.write_text(f"[{', '.join(hosts)}]")
    return Cluster.of(load(None, {}).config, path).members


@pytest.mark.parametrize(
    ("lost", "looks", "left_out"),
    [
        ([], [LOST_PATIENCE], []),
        (["mini2"], [LOST_PATIENCE], ["mini2"]),
        (["mini2", "master"], [LOST_PATIENCE], ["mini2", "master"]),
        (NAMES, [LOST_PATIENCE, LOGIN_PATIENCE], ["master"]),
    ],
)
def test_all_at_once_are_looked_for_with_patience(
    members: Sequence[Member],
    lost: Sequence[str],
    looks: Sequence[float],
    left_out: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that a quick look does not find; a second one does not find the last of them."""
    seen = []

    async def unreachable(
        members: Sequence[Member], patience: float = LOGIN_PATIENCE
    ) -> dict[str, str]:
        seen.append(patience)
        return dict.fromkeys(lost if len(seen) == 1 else NAMES[2:], "it does not answer")

    monkeypatch.setattr(probe, "unreachable", unreachable)

    async def find() -> dict[str, str]:
        nodes = LostNodes()
        nodes.search(members)
        nodes.search(members)
        return await nodes.found()

    assert sorted(asyncio.run(find())) == sorted(left_out)
    assert seen == looks


def test_for_new_nodes_nobody_waits_longer(
    members: Sequence[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others, of which nobody serves meanwhile, can go on without them."""
    seen = []

    def why_no_login(host: str, patience: float) -> str:
        seen.append(patience)
        return "it does not answer"

    monkeypatch.setattr(probe, "why_no_login", why_no_login)

    async def find() -> dict[str, str]:
        nodes = LostNodes()
        nodes.search(members[:1], patient=False)
        return await nodes.found()

    assert set(asyncio.run(find())) == {"mini1"}
    assert seen == [LOST_PATIENCE]
