from __future__ import annotations

from pathlib import Path

import pytest

from server import launch_files
from server.launch_files import HOSTFILE, PREFIX


@pytest.fixture
def launched(tmp_path: Path) -> dict[str, str]:
    """The environment of a rank that launcher.mlx_launch has started."""
    folder = tmp_path / f"{PREFIX}7-aB3xyz"
    folder.mkdir()
    (folder / "pid").write_text("7\n")
    (folder / "ring").write_text("")
    return {HOSTFILE: str(folder / "ring")}


def test_a_rank_leaves_nothing(launched: dict[str, str], tmp_path: Path) -> None:
    launch_files.remove(launched)
    assert not list(tmp_path.iterdir())
    launch_files.remove(launched)


def test_another_place_is_written_where_it_goes_with_the_rank(
    launched: dict[str, str], tmp_path: Path
) -> None:
    launch_files.remove(launched)
    launch_files.replace("[]", launched)
    assert Path(launched[HOSTFILE]).read_text() == "[]"
    assert [path.name.split("-")[:3] for path in tmp_path.iterdir()] == [PREFIX.split("-")[:3]]
    launch_files.remove(launched)
    assert not list(tmp_path.iterdir())


def test_files_of_mlx_launch_alone_are_its_own(tmp_path: Path) -> None:
    """Its script for ending a rank reads one of them."""
    path = tmp_path / "tmp.aB3xyz"
    path.write_text("")
    launch_files.remove({HOSTFILE: str(path)})
    assert path.exists()
    launch_files.replace("[]", {HOSTFILE: str(path)})
    assert path.read_text() == "[]"


def test_without_mlx_launch_there_is_nothing_to_remove() -> None:
    launch_files.remove({})
