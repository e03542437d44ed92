from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.kernel_files import SETTLED, remove_broken

PROGRAM = """
import mlx.core as mx
mx.eval(mx.compile(lambda x: mx.exp(x) * mx.tanh(x) + 1)(mx.arange(8.0)))
from pipeline.kernel_files import folder
print(folder())
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that MLX has had compiled, in a folder of its own, long ago."""
    place = tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "-c", PROGRAM]
    environment = {**os.environ, "TMPDIR": str(place)}
    ran = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    kernels = list(Path(ran.stdout.strip()).glob("lib*.so"))
    if not kernels:
        pytest.skip("MLX compiles nothing for the processor here")
    os.utime(kernels[0], (0, 0))
    return kernels[0]


def test_what_was_compiled_stays(kernel: Path) -> None:
    assert remove_broken(kernel.parent, time.time()) == []
    assert kernel.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="libraries have another format")
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_what_was_cut_off_is_compiled_again(kernel: Path, tmp_path: Path, kept: float) -> None:
    content = kernel.read_bytes()
    broken = tmp_path / kernel.name
    broken.write_bytes(content[: int(kept * len(content))])
    assert remove_broken(tmp_path, broken.stat().st_mtime + SETTLED / 2) == []
    assert remove_broken(tmp_path, broken.stat().st_mtime + SETTLED * 2) == [broken]
    assert not broken.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="libraries have another format")
def test_one_without_its_header_yet_is_broken(kernel: Path, tmp_path: Path) -> None:
    broken = tmp_path / kernel.name
    broken.write_bytes(bytes(kernel.stat().st_size))
    assert remove_broken(tmp_path, time.time() + SETTLED * 2) == [broken]


def test_no_folder_is_nothing_to_do(tmp_path: Path) -> None:
    assert remove_broken(tmp_path / "none", time.time()) == []
