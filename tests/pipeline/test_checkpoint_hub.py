from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from huggingface_hub import constants
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from pipeline.checkpoint import Checkpoint
from pipeline.errors import CheckpointError, ModelError, ModelNotFound
from tests.pipeline.hub_server import COMMIT, Hub, serve_hub
from tests.pipeline.tiny_models import LLAMA, QWEN3_MOE, make_folder

MODEL = "somebody/tiny-moe"


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does to a process that has yet to start."""
    files = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has MODEL, and empty caches."""
    with serve_hub() as hub:
        hub.repositories[MODEL] = make_folder(tmp_path / "published", QWEN3_MOE)
        use_hub(monkeypatch, hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("MLXC_CACHE_DIR", str(tmp_path / "cache"))
        yield hub


def test_opening_and_planning_download_no_weights(hub: Hub) -> None:
    checkpoint = Checkpoint.open(MODEL)
    local = Checkpoint.open(hub.repositories[MODEL])
    assert checkpoint.costs() == local.costs()
    assert checkpoint.fingerprint == local.fingerprint
    assert hub.weights() == []
    assert checkpoint.path.name == COMMIT


def test_a_stage_downloads_only_its_own_files(hub: Hub) -> None:
    stage = Checkpoint.open(MODEL).load_stage(1, 3)
    assert hub.weights() == ["model-layer1.safetensors", "model-layer2.safetensors"]
    whole, _ = load_model(hub.repositories[MODEL])
    wanted = dict(tree_flatten(whole.parameters()))
    for name, array in tree_flatten(stage.model.parameters()):
        assert mx.array_equal(array, wanted[name]), name


def test_a_second_start_downloads_nothing(hub: Hub) -> None:
    Checkpoint.open(MODEL).load_stage(0, 2)
    hub.forget_requests()
    Checkpoint.open(MODEL).load_stage(0, 2)
    assert hub.downloads == []


def test_a_cached_stage_starts_without_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    online = Checkpoint.open(MODEL)
    online.load_stage(0, 2)
    hub.forget_requests()
    hub.failing = True
    offline = Checkpoint.open(MODEL)
    offline.load_stage(0, 2)
    assert offline.fingerprint == online.fingerprint
    assert hub.downloads == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.forget_requests()
    Checkpoint.open(MODEL).load_stage(0, 2)
    assert hub.requests == []
    with pytest.raises(CheckpointError, match=r"model-.*safetensors of .* can't be downloaded"):
        Checkpoint.open(MODEL).load_stage(2, 4)


def test_a_download_that_broke_off_is_repeated_for_the_missing_file_only(hub: Hub) -> None:
    checkpoint = Checkpoint.open(MODEL)
    checkpoint.load_stage(1, 2)
    hub.forget_requests()
    checkpoint.load_stage(1, 3)
    assert hub.weights() == ["model-layer2.safetensors"]


def test_progress_of_a_download_ends_at_its_bytes(hub: Hub) -> None:
    seen: list[tuple[str, int, int]] = []
    checkpoint = Checkpoint.open(MODEL)
    checkpoint.load_stage(1, 3, lambda *step: seen.append(step))
    steps = [(done, total) for what, done, total in seen if what == f"Downloading {MODEL}"]
    assert steps[-1] == (sum(checkpoint.costs().layer_bytes[1:3]),) * 2


def test_models_that_the_hub_does_not_give(hub: Hub) -> None:
    with pytest.raises(ModelNotFound, match="neither a folder nobody/nothing nor such a model"):
        Checkpoint.open("nobody/nothing")
    with pytest.raises(ModelNotFound, match="has somebody/tiny-moe, but not its revision v2"):
        Checkpoint.open(MODEL, revision="v2")
    hub.gated.add(MODEL)
    with pytest.raises(ModelNotFound, match="accept them and set HF_TOKEN"):
        Checkpoint.open(MODEL)


def test_a_name_that_can_be_no_model(hub: Hub) -> None:
    with pytest.raises(ModelNotFound, match="neither a folder nor the id of a model"):
        Checkpoint.open("some body/mödel")
    assert hub.requests == []


def test_an_unreachable_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(ModelNotFound, match="the hub can't be reached and it is not in the cache"):
        Checkpoint.open(MODEL)


def test_a_repository_without_weights(hub: Hub) -> None:
    for file in hub.repositories[MODEL].glob("*.safetensors"):
        file.unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        Checkpoint.open(MODEL)


def test_a_repository_without_config(hub: Hub) -> None:
    (hub.repositories[MODEL] / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        Checkpoint.open(MODEL)


def test_a_repository_that_lacks_a_file_of_its_index(hub: Hub) -> None:
    (hub.repositories[MODEL] / "model-layer1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names model-layer1\.safetensors, which is missing"):
        Checkpoint.open(MODEL)


def test_a_broken_header_on_the_hub(hub: Hub) -> None:
    (hub.repositories[MODEL] / "model-layer1.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="is broken on the hub"):
        Checkpoint.open(MODEL)


def test_python_files_are_fetched_only_if_trusted(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["somebody/own-code"] = folder = make_folder(tmp_path / "code", LLAMA)
    (folder / "own.py").write_text("answer = 42")
    Checkpoint.open("somebody/own-code")
    assert "own.py" not in hub.downloads
    Checkpoint.open("somebody/own-code", trust_remote_code=True)
    assert "own.py" in hub.downloads


def test_damaged_cached_headers_are_fetched_again(hub: Hub, tmp_path: Path) -> None:
    Checkpoint.open(MODEL)
    (cached,) = (tmp_path / "cache").rglob(f"{COMMIT}.json")
    cached.write_text('{"model-layer1.safetensors": ')
    assert Checkpoint.open(MODEL).num_layers == 4
