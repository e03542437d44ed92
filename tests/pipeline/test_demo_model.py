"""The demo model is the real one: these tests make it if this machine has not got it yet."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import generate, load
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline import demo_gguf, demo_model
from pipeline.demo_model import Variant, ensure_demo_model
from pipeline.errors import CheckpointError, ModelError

FLOAT32 = Variant(quantized=False)


@pytest.fixture(scope="module")
def folder() -> Path:
    return ensure_demo_model(FLOAT32)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def test_answers_a_question(folder: Path) -> None:
    model, tokenizer = load(str(folder))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
    assert "Paris" in generate(model, tokenizer, prompt, max_tokens=12)
    assert tokenizer.eos_token_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world!",
        "  indented\n\n\ttext  with   spaces ",
        "In 1987 there were 31415 of them.",
        "naïve café — 東京, Ελλάδα, 🚀👩‍🚀",
        "def f(x):\n    return x ** 2  # it's\n",
    ],
)
def test_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_numbers_are_cut_into_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.tokenize("1987") == ["1", "9", "8", "7"]


def test_special_tokens_are_one_token_each(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer.encode("<|im_start|>user<|im_end|>")
    assert (ids[0], ids[-1], len(ids)) == (1, 2, 3)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user"


def test_second_call_changes_nothing(folder: Path) -> None:
    def state() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    before, said = state(), list[str]()
    assert ensure_demo_model(FLOAT32, said.append) == folder
    assert state() == before
    assert said == []


TINY = {
    "embedding_length": 64,
    "feed_forward_length": 64,
    "block_count": 2,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "context_length": 32,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
    "vocab_size": 4,
}


@pytest.fixture
def tiny() -> demo_gguf.Gguf:
    """The same form of file, small: quantized q/k/v, an 8-bit embedding and float norms."""
    rng = np.random.default_rng(7)
    arrays: dict[str, mx.array] = {"output_norm.weight": mx.ones(64)}

    def add(stem: str, rows: int, bits: int = 4) -> None:
        dense = mx.array(0.2 * rng.standard_normal((rows, 64)), mx.float32)
        packed = mx.quantize(dense.astype(mx.float16), group_size=demo_gguf.GROUP_SIZE, bits=bits)
        names = ("weight", "scales", "biases")
        arrays.update({f"{stem}.{name}": part for name, part in zip(names, packed, strict=True)})

    add("token_embd", 4, bits=8)
    for block in range(2):
        arrays[f"blk.{block}.attn_norm.weight"] = mx.ones(64)
        arrays[f"blk.{block}.ffn_norm.weight"] = mx.ones(64)
        for kind, rows in (("attn_q", 64), ("attn_k", 32), ("attn_v", 32), ("attn_output", 64)):
            add(f"blk.{block}.{kind}", rows)
        for kind in ("ffn_gate", "ffn_up", "ffn_down"):
            add(f"blk.{block}.{kind}", 64)
    metadata: dict[str, Any] = {f"llama.{key}": value for key, value in TINY.items()}
    metadata |= {
        "tokenizer.ggml.tokens": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a"],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.token_type": mx.array([3, 3, 3, 1]),
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return demo_gguf.Gguf(arrays, metadata)


def written(tmp_path: Path, gguf: demo_gguf.Gguf, variant: Variant) -> Path:
    folder = tmp_path / variant.folder_name
    folder.mkdir()
    demo_model.write_variant(folder, gguf, variant)
    return folder


def logits(folder: Path) -> mx.array:
    model, _ = load(str(folder))
    return model(mx.array([[3, 1, 2, 0, 3]])).astype(mx.float32)


def relative_error(value: mx.array, expected: mx.array) -> float:
    return float((mx.linalg.norm(value - expected) / mx.linalg.norm(expected)).item())  # type: ignore[arg-type]


def test_every_variant_is_the_same_model(tmp_path: Path, tiny: demo_gguf.Gguf) -> None:
    expected = logits(written(tmp_path, tiny, FLOAT32))
    qwen2 = logits(written(tmp_path, tiny, Variant(architecture="qwen2", files=3)))
    quantized = logits(written(tmp_path, tiny, Variant(quantized=True)))
    assert mx.array_equal(qwen2, expected)
    assert relative_error(quantized, expected) < 0.005  # float16 activations


def test_weights_can_be_spread_over_files(tmp_path: Path, tiny: demo_gguf.Gguf) -> None:
    folder = written(tmp_path, tiny, Variant(files=3))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {p.name for p in folder.glob("*.safetensors")}
    assert len(set(index["weight_map"].values())) == 3
    sizes: list[Any] = [mx.load(str(path)) for path in folder.glob("*.safetensors")]
    total = sum(array.nbytes for part in sizes for array in part.values())
    assert index["metadata"]["total_size"] == total


def test_interleaved_rope_rows_are_put_back() -> None:
    interleaved = mx.array([0, 2, 1, 3, 4, 6, 5, 7]).reshape(8, 1)
    halves = demo_gguf.split_halves(interleaved, heads=2)
    assert halves.flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_unknown_architecture_is_refused_by_name(tmp_path: Path, tiny: demo_gguf.Gguf) -> None:
    with pytest.raises(ModelError, match="'mamba'"):
        written(tmp_path, tiny, Variant(architecture="mamba"))


def test_unknown_tensor_is_refused_by_name(tiny: demo_gguf.Gguf) -> None:
    tiny.arrays["blk.0.attn_bias.weight"] = mx.ones(4)
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_bias"):
        list(demo_gguf.weights(tiny, quantized=False))


def test_a_folder_that_can_not_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("MLXC_CACHE_DIR", str(blocked))
    with pytest.raises(ModelError, match="can't be written"):
        ensure_demo_model(FLOAT32)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a model hub as a download of one repository needs."""

    folder: Path
    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def do_HEAD(self) -> None:
        self.do_GET(with_body=False)

    def do_GET(self, with_body: bool = True) -> None:
        path = self.folder / self.path.rpartition("/")[2]
        if "/tree/" in self.path:
            entries = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name}
                for file in sorted(self.folder.iterdir())
            ]
            self._answer(json.dumps(entries).encode(), "tree", with_body)
        elif self.path.startswith(f"/api/models/{demo_model.REPOSITORY}"):
            answer = {"id": demo_model.REPOSITORY, "sha": self.COMMIT, "siblings": []}
            self._answer(json.dumps(answer).encode(), "info", with_body)
        elif path.is_file():
            self._answer(path.read_bytes(), path.name, with_body)
        else:
            self.send_error(404)

    def _answer(self, body: bytes, etag: str, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", self.COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, tiny: demo_gguf.Gguf) -> Iterator[str]:
    Hub.folder = written(tmp_path, tiny, FLOAT32)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def hub_environment(tmp_path: Path, hub: str) -> dict[str, str]:
    return {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "MLXC_CACHE_DIR": str(tmp_path / "cache"),
    }


def making(environment: dict[str, str], option: str = "--no-quantized") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "scripts/demo_model.py", option],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("option", ["--no-quantized", "--quantized"])
def test_the_hub_is_preferred_where_it_answers(
    hub_environment: dict[str, str], option: str
) -> None:
    made = making(hub_environment, option)
    output, said = made.communicate(timeout=120)
    assert made.returncode == 0, said
    assert "from the Hugging Face hub" in said
    error = relative_error(logits(Path(output.strip())), logits(Hub.folder))
    assert error < (1e-5 if option == "--no-quantized" else 0.3)


def test_one_of_several_processes_makes_it(hub_environment: dict[str, str]) -> None:
    processes = [making(hub_environment) for _ in range(3)]
    ends = [process.communicate(timeout=120) for process in processes]
    paths, said = zip(*ends, strict=True)
    assert len(set(paths)) == 1
    assert "".join(said).count("downloading") == 1
    folder = Path(paths[0].strip())
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}
