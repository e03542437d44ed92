"""What can be measured side by side, with the same model folder and the same numeric library."""

from __future__ import annotations

import ctypes.util
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import yaml

from benchlib.ports import HOST, free_ports
from benchlib.servers import LocalServer
from pipeline.demo_model import Variant, ensure_demo_model

MODEL = "bench"  # its name in the configuration of this project's server
MLX_LM_MODEL = "default_model"  # mlx_lm.server's name for the model of its command line

OURS, SUPERVISED = (
    "ours",
    "supervised",
)  # this project's server: the job alone, and with its launcher
MLX_LM, MLX_LM_PIPELINE = "mlx_lm", "mlx_lm_pipeline"
KINDS = (OURS, SUPERVISED, MLX_LM, MLX_LM_PIPELINE)


@dataclass(frozen=True)
class Target:
    """One server to measure.  Written `supervised:2`, `mlx_lm` and so on: its kind and the number of ranks."""

    kind: str
    ranks: int = 1

    @classmethod
    def parse(cls, text: str) -> Target:
        """Raises ValueError."""
        kind, _, ranks = text.partition(":")
        if kind not in KINDS or not (ranks or "1").isdecimal():
            raise ValueError(f"{text!r} is not ours:N, supervised:N, mlx_lm or mlx_lm_pipeline:N")
        target = cls(kind, int(ranks or "1"))
        if target.ranks < 1 or (kind == MLX_LM and target.ranks > 1):
            raise ValueError(f"{text!r}: {kind} can't run with {target.ranks} ranks")
        return target

    def __str__(self) -> str:
        return self.kind if self.kind == MLX_LM else f"{self.kind}:{self.ranks}"


@dataclass(frozen=True)
class Setup:
    """What all targets of one run have in common.

    `blas_threads`: of each process; 1 lets a rank stand for a machine of its own.
    `settings`: `key=value` for this project's server only.  `quiet_launch`: mlx_lm's ranks are started by this
    project's launcher, whose loop does not use a core as mlx.launch's does.
    """

    model: Path
    blas_threads: int = 1
    settings: Sequence[str] = ()
    quiet_launch: bool = False

    def environment(self) -> dict[str, str]:
        """This process's, without settings of a cluster, and with OpenBLAS on Linux if it is installed."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("MLXC_") or name == "MLXC_CACHE_DIR"
        }
        if (library := blas_library()) and "openblas" not in kept.get("LD_PRELOAD", ""):
            kept["LD_PRELOAD"] = ":".join(filter(None, (library, kept.get("LD_PRELOAD"))))
        threads = str(self.blas_threads)
        return kept | {"OPENBLAS_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}

    def server(self, target: Target, scratch: Path) -> LocalServer:
        """A server of `target`, not yet started; it writes to a folder of its own under `scratch`."""
        folder = Path(tempfile.mkdtemp(dir=scratch))
        if target.kind in (OURS, SUPERVISED):
            return self._ours(target, folder)
        return self._mlx_lm(target, folder)

    def _ours(self, target: Target, folder: Path) -> LocalServer:
        ranks = target.ranks
        gateway, coordinator, *rest = free_ports(2 + 4 * ranks)
        write_config(folder, self.model, gateway, coordinator, rest[: 3 * ranks])
        label = f"mlx-cluster, {ranks} rank{'s' * (ranks > 1)}"
        if target.kind == SUPERVISED:
            command = [sys.executable, "-m", "launcher", "--ranks", str(ranks)]
            command += ["--starting-port", str(rest[3 * ranks])]
            label += ", supervised"
        else:
            command = [*local_job(ranks, rest[3 * ranks]), sys.executable, "-m", "server"]
        command += ["--config", str(folder)]
        for setting in self.settings:
            command += ["--set", setting]
        url = f"http://{HOST}:{gateway}"
        return LocalServer(label, command, self.environment(), url, MODEL, "/ready", folder)

    def _mlx_lm(self, target: Target, folder: Path) -> LocalServer:
        port, *ring = free_ports(1 + target.ranks)
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(self.model)]
        command += ["--host", HOST, "--port", str(port), "--log-level", "WARNING"]
        label = "mlx_lm.server"
        if target.kind == MLX_LM_PIPELINE:
            label += f" --pipeline, {target.ranks} ranks"
            launch = local_job if self.quiet_launch else _mlx_launch
            command = [*launch(target.ranks, ring[0]), *command, "--pipeline"]
        url = f"http://{HOST}:{port}"
        environment = self.environment()
        return LocalServer(label, command, environment, url, MLX_LM_MODEL, "/health", folder)


def local_job(ranks: int, ring_port: int) -> list[str]:
    """Starts ranks on this machine; what each is to run follows."""
    job = [sys.executable, "-m", "launcher.job", "--ranks", str(ranks)]
    return [*job, "--starting-port", str(ring_port), "--"]


def _mlx_launch(ranks: int, ring_port: int) -> list[str]:
    program = str(Path(sys.executable).parent / "mlx.launch")
    return [program, "-n", str(ranks), "--starting-port", str(ring_port), "--"]


def write_config(
    folder: Path, model: Path, gateway: int, coordinator: int, ports: Sequence[int]
) -> None:
    """A configuration folder for one node per three `ports`, all on this machine."""
    nodes = {
        f"n{rank}": {"node_id": rank, "host": HOST, "ports": list(ports[3 * rank : 3 * rank + 3])}
        for rank in range(len(ports) // 3)
    }
    files = {
        "cluster": {"coordinator": {"port": coordinator}, "api_gateway": {"port": gateway}},
        "nodes": {"nodes": nodes},
        "models": {"default_model": MODEL, "models": {MODEL: {"source": str(model)}}},
    }
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def blas_library() -> str | None:
    """What to preload: MLX's CPU wheel for Linux has the slow reference BLAS."""
    if sys.platform != "linux" or mx.cuda.is_available():
        return None
    return ctypes.util.find_library("openblas")


def demo_model() -> Path:
    """The demo model in a form that mlx_lm's pipeline takes: as qwen2, in several files with an index.

    Raises ModelError.
    """
    variant = replace(Variant.for_this_machine(), architecture="qwen2", files=2)
    return ensure_demo_model(variant, lambda line: print(line, file=sys.stderr, flush=True))
