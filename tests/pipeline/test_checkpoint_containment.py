"""Model folders that would lead somewhere else, or run something."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from pipeline.checkpoint import Checkpoint
from pipeline.checkpoint.containment import check_contained
from pipeline.errors import CheckpointError
from server.api.tokenizer import load_tokenizer
from tests.cluster.tiny import tokenizer
from tests.pipeline.tiny_models import LLAMA, make_folder

NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    make_folder(path, LLAMA)
    return path


class Bomb:
    """Runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def test_pickles_beside_the_weights_are_never_opened(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "went-off"
    bomb = pickle.dumps(Bomb(marker))
    names = ("pytorch_model.bin", "model.pt", "vocab.pkl", "adapters.npz", "training_args.bin")
    for name in names:
        (folder / name).write_bytes(bomb)
    tokenizer(64).save_pretrained(folder)
    checkpoint = Checkpoint.open(folder)
    checkpoint.load_stage(0, checkpoint.num_layers)
    load_tokenizer(folder, checkpoint.config, trust_remote_code=False)
    assert not marker.exists()
    pickle.loads(bomb)
    assert marker.exists(), "the bomb is one"


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "weights.npz", "consolidated.pth"]
)
def test_weights_in_other_forms_are_refused_by_name(folder: Path, name: str) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    (folder / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"has its weights as {name}, and only safetensors"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/passwd", "sub/model.safetensors"]
)
def test_an_index_can_name_only_files_of_the_folder(
    folder: Path, tmp_path: Path, name: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    shutil.copytree(folder, folder / "sub")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(CheckpointError, match=r"names .*, which is missing"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model-extra.safetensors", "sub"]
)
def test_links_that_lead_out_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside if name == "sub" else outside / "file")
    with pytest.raises(
        CheckpointError, match=f"{name} is a link to .*outside of the model's folder"
    ):
        Checkpoint.open(folder)


def test_links_within_the_folder_and_to_the_folder_are_followed(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "config.json").rename(folder / "real.json")
    (folder / "config.json").symlink_to("real.json")
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert Checkpoint.open(link).num_layers == 4


def test_a_snapshot_of_the_hub_consists_of_links_to_its_blobs(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--name"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        shutil.copy(file, blobs / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    assert Checkpoint.open(snapshot).num_layers == 4
    (snapshot / "more.json").symlink_to("../../../elsewhere.json")
    with pytest.raises(CheckpointError, match=r"more\.json is a link"):
        Checkpoint.open(snapshot)


def test_what_is_no_file(folder: Path) -> None:
    os.mkfifo(folder / "tokenizer.json")  # reading it would wait for ever
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        check_contained(folder)


def test_weights_that_can_not_be_read_are_not_taken_for_broken_ones(folder: Path) -> None:
    path = next(folder.glob("model*.safetensors"))
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=f"{path.name} can't be read: Is a directory"):
        Checkpoint.open(folder)


def test_a_folder_that_this_user_may_not_enter(folder: Path) -> None:
    folder.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)  # nothing keeps root out
    try:
        with pytest.raises(CheckpointError, match=r"can't be read: Permission denied\.$"):
            Checkpoint.open(folder)
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o700)


def test_trusted_code_comes_from_the_folder_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from mlx_lm.models.llama import Model, ModelArgs")
    (folder / "config.json").write_text(json.dumps(LLAMA | {"model_file": "../own.py"}))
    with pytest.raises(CheckpointError, match=r"names \.\./own\.py, a path that leads out of it"):
        Checkpoint.open(folder, trust_remote_code=True)
