"""What can't work ends the whole job, in seconds, with one sentence and a status, and leaves nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from mlx.utils import tree_flatten

from tests.cluster.conftest import Start
from tests.cluster.harness import (
    ANSWER_DEADLINE,
    HOST,
    Cluster,
    Ports,
    Spec,
    folder_model,
    is_running,
    taken,
    wait_until,
)
from tests.cluster.tiny import make_folder, tokenizer
from tests.pipeline.hub_server import serve_hub
from tests.pipeline.tiny_models import LLAMA, make_model, write_folder

FAILURE_DEADLINE = 60.0  # seconds, of which an idle machine needs some 5
EXIT_STARTUP, EXIT_LOST, EXIT_TOO_FEW = 1, 3, 4


def errors(cluster: Cluster) -> list[str]:
    """The launcher's last words."""
    return [line[7:] for line in cluster.log.splitlines() if line.startswith("error: ")]


def assert_ends(cluster: Cluster, status: int, *parts: str) -> None:
    """The job ends with `status` and one sentence that holds all `parts`; no traceback, nothing left."""
    assert cluster.wait_ended(FAILURE_DEADLINE) == status, cluster.log
    assert len(errors(cluster)) == 1, cluster.log
    for part in parts:
        assert part in errors(cluster)[0]
    assert "Traceback" not in cluster.log
    cluster.assert_nothing_left()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("models") / "tiny", "llama")


@dataclass(frozen=True)
class Damage:
    """How a model folder is broken, and what the sentence has to say."""

    do: Callable[[Path], Any]
    says: tuple[str, ...]


def _edit(**changes: Any) -> Callable[[Path], Any]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


# At each moment of a start; every other damage has its sentence from tests/pipeline/test_checkpoint.py.
DAMAGES = {
    "no folder": Damage(shutil.rmtree, ("model",)),
    "unknown architecture": Damage(_edit(model_type="frobnicator"), ("frobnicator",)),
    "missing shard": Damage(
        lambda folder: (folder / "model-layer2.safetensors").unlink(), ("model-layer2.safetensors",)
    ),
    "wrong shapes": Damage(_edit(hidden_size=128), ("shape",)),
    "no tokenizer": Damage(
        lambda folder: [file.unlink() for file in folder.glob("token*")], ("tokenizer",)
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_broken_model(start: Start, model: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    DAMAGES[name].do(folder)
    cluster = start(Spec(ranks=2, models=folder_model(folder)))
    assert_ends(cluster, EXIT_STARTUP, *DAMAGES[name].says)


def test_too_little_memory(start: Start, model: Path) -> None:
    cluster = start(Spec(ranks=2, models=folder_model(model), node={"memory": "100KB"}))
    assert_ends(cluster, EXIT_TOO_FEW, "memory", "n0")


SAME_AS_HEALTH = pytest.param("inference", marks=pytest.mark.soak)


@pytest.mark.parametrize("which", ["gateway", "coordinator", SAME_AS_HEALTH, "frames", "health"])
def test_a_port_in_use(start: Start, tmp_path: Path, model: Path, which: str) -> None:
    ports = Ports.free(2, 2)
    inference, frames, health = ports.nodes[1]
    key, port = {
        "gateway": ("api_gateway.port", ports.gateway),
        "coordinator": ("coordinator.port", ports.coordinator),
        "inference": ("nodes.n1.ports", inference),
        "frames": ("n1", frames),
        "health": ("nodes.n1.ports", health),
    }[which]
    with ExitStack() as stack:
        stack.enter_context(socket.create_server((HOST, port)))
        cluster = Cluster(Spec(ranks=2, models=folder_model(model)), tmp_path / "cluster", ports)
        stack.callback(cluster.kill)
        status = cluster.start().wait_ended(FAILURE_DEADLINE)
    assert status == EXIT_STARTUP, cluster.log
    assert len(errors(cluster)) == 1, cluster.log
    assert key in errors(cluster)[0]
    assert re.search(rf"port {port}\b.* already in use", errors(cluster)[0])
    assert "Traceback" not in cluster.log
    cluster.assert_nothing_left()


def test_a_mistake_in_the_configuration(start: Start) -> None:
    cluster = start(Spec(ranks=2, settings=("api_gateway.prot=1",)))
    assert_ends(cluster, EXIT_STARTUP, "api_gateway.prot", "port")


SHARDING_MISTAKES = {
    "too many layers": ([(0, 2), (3, 6)], ("6",)),
    "too few nodes": ([(0, 5)], ("sharding", "n1")),
}


@pytest.mark.parametrize("name", SHARDING_MISTAKES)
def test_wrong_ranges_are_refused(start: Start, model: Path, name: str) -> None:
    ranges, says = SHARDING_MISTAKES[name]
    sharding = {f"node_{node}": {"layers": list(layers)} for node, layers in enumerate(ranges)}
    cluster = start(Spec(ranks=2, models=folder_model(model, sharding=sharding)))
    assert_ends(cluster, EXIT_STARTUP, *says)


def one_rank_differs(folder: Path, shell: str) -> tuple[str, ...]:
    """A command for the ranks that runs `shell` on rank 1 before the server."""
    script = folder / "rank.sh"
    script.write_text(f'#!/bin/sh\n[ "$MLX_RANK" = 1 ] && {shell}\nexec "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return (str(script), *Spec().command)


@pytest.mark.parametrize(
    ("shell", "says"),
    [
        ("export MLXC_CLUSTER__NAME=other", ("configured differently in cluster", "n0", "n1")),
        ("export MLXC_MODELS__M__SOURCE=/nowhere", ("n1", "/nowhere")),
    ],
)
def test_nodes_that_do_not_fit_together(
    start: Start, model: Path, tmp_path: Path, shell: str, says: tuple[str, ...]
) -> None:
    spec = Spec(
        ranks=2,
        models=folder_model(model),
        command=one_rank_differs(tmp_path, shell),
    )
    assert_ends(start(spec), EXIT_STARTUP, *says)


def test_a_rank_that_dies_before_it_joins(start: Start, tmp_path: Path) -> None:
    cluster = start(Spec(ranks=2, command=one_rank_differs(tmp_path, "exit 7")))
    assert cluster.wait_ended(FAILURE_DEADLINE) == 7
    assert errors(cluster) == ["rank 1 exited with status 7"]
    cluster.assert_nothing_left()


def ranks_of(cluster: Cluster) -> list[psutil.Process]:
    """The processes of the ranks that have started so far."""
    assert cluster.process
    found = psutil.Process(cluster.process.pid).children(recursive=True)
    return [child for child in found if _command(child)[1:3] == ["-m", "server"]]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def stop_now(cluster: Cluster) -> None:
    wait_until(lambda: len(ranks_of(cluster)) == cluster.spec.ranks, "ranks started")
    cluster.pids = [rank.pid for rank in ranks_of(cluster)]
    cluster.stop()
    assert "Traceback" not in cluster.log
    assert "were ended by force" not in cluster.log


def test_a_stop_during_the_start_is_orderly(start: Start) -> None:
    stop_now(start(Spec(ranks=2)))


def test_a_stop_while_it_joins_is_orderly(start: Start, tmp_path: Path) -> None:
    """Rank 0 waits in MLX for rank 1, which never comes."""
    command = one_rank_differs(tmp_path, "exec sleep 600")
    cluster = start(Spec(ranks=2, command=command))
    wait_until(lambda: len(ranks_of(cluster)) == 1, "rank 0 started")
    wait_until(lambda: bool(taken([cluster.ports.ring[0]])), "rank 0 waits for its neighbour")
    cluster.pids = [rank.pid for rank in ranks_of(cluster)]
    cluster.stop()
    assert "Traceback" not in cluster.log


def test_a_stop_while_it_loads_is_orderly(start: Start, model: Path, tmp_path: Path) -> None:
    """A file of the weights comes only half."""
    with serve_hub() as hub:
        hub.repositories["tests/tiny"] = model
        hub.held = {"model-layer1.safetensors"}
        spec = Spec(
            ranks=2,
            models=folder_model(Path("tests/tiny")),
            env={"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")},
        )
        cluster = start(spec)
        wait_until(lambda: hub.held <= set(hub.downloads), "the download has begun")
        stop_now(cluster)


# after the start


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.soak), 2])
def test_a_killed_rank_ends_the_stream_and_the_job(start: Start, model: Path, victim: int) -> None:
    cluster = start(Spec(ranks=3, models=folder_model(model))).wait_ready()
    body = cluster.body([5, 6, 7], 1000, stream=True)
    received: list[str] = []
    with cluster.http.stream("POST", "/v1/completions", json=body) as stream:
        try:
            for line in stream.iter_lines():
                received += [line] if line.startswith("data: ") else []
                if len(received) == 3:
                    os.kill(cluster.pids[victim], signal.SIGKILL)
        except httpx.RemoteProtocolError:
            assert victim == 0, "ranks that live end their streams with an event"
        else:
            assert victim != 0
            error = json.loads(received[-2 if received[-1] == "data: [DONE]" else -1][6:])
            assert error["error"]["type"] == "server_error"
    cluster.http.close()
    assert cluster.wait_ended(FAILURE_DEADLINE) != 0
    assert re.match(r"rank \d .*(closed the connection|was killed by SIGKILL)", errors(cluster)[0])
    assert "Traceback" not in cluster.log
    cluster.assert_nothing_left()


def assert_fails(cluster: Cluster, body: dict[str, Any]) -> None:
    """The request gets an error of the server, unless that ends first."""
    with suppress(httpx.RemoteProtocolError):
        answer = cluster.http.post("/v1/completions", json=body, timeout=ANSWER_DEADLINE)
        assert answer.status_code >= 500


def thaw(cluster: Cluster, frozen: int) -> None:
    """Let the rank end, too; not before rank 0 has said why it ended."""
    wait_until(lambda: not is_running(cluster.pids[0]), "rank 0 has ended", FAILURE_DEADLINE)
    with suppress(ProcessLookupError):
        os.kill(frozen, signal.SIGCONT)


def test_a_frozen_rank_is_found_by_its_silence(start: Start, model: Path) -> None:
    """SIGSTOP: no connection is closed, only heartbeats and the step deadline tell."""
    settings = ("network.step_timeout=2",)
    cluster = start(Spec(ranks=3, models=folder_model(model), settings=settings)).wait_ready()
    frozen = cluster.pids[1]
    os.kill(frozen, signal.SIGSTOP)
    try:
        assert_fails(cluster, cluster.body([5, 6, 7], 50))
    finally:
        thaw(cluster, frozen)
    assert cluster.wait_ended(FAILURE_DEADLINE) not in (0, EXIT_STARTUP), cluster.log
    assert re.search(r"for \d+ s|silent", errors(cluster)[0])
    cluster.assert_nothing_left()


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few layers, whose hidden states of a few thousand tokens are more than sockets buffer."""
    config = LLAMA | {"hidden_size": 1024, "num_hidden_layers": 2, "max_position_embeddings": 16384}
    folder = tmp_path_factory.mktemp("models") / "wide"
    write_folder(folder, config, dict(tree_flatten(make_model(config).parameters())))
    tokenizer(config["vocab_size"]).save_pretrained(folder)
    return folder


def test_a_rank_that_hangs_inside_a_collective_is_found(start: Start, wide_model: Path) -> None:
    """Rank 0 waits in MLX for a frozen neighbour to take a tensor: only another thread can tell.

    It sends a second one before it waits for the first, so that there have to be three.
    """
    settings = ("network.step_timeout=3", "scheduler.prefill_chunk_tokens=3072")
    cluster = start(Spec(ranks=2, models=folder_model(wide_model), settings=settings)).wait_ready()
    frozen = cluster.pids[1]
    os.kill(frozen, signal.SIGSTOP)
    try:
        assert_fails(cluster, cluster.body([n % 90 for n in range(7000)], 5))
    finally:
        thaw(cluster, frozen)
    assert cluster.wait_ended(FAILURE_DEADLINE) == EXIT_LOST, cluster.log
    assert "network.step_timeout" in errors(cluster)[0]
    cluster.assert_nothing_left()


def test_a_stop_tells_running_streams(start: Start, model: Path) -> None:
    cluster = start(Spec(ranks=2, models=folder_model(model))).wait_ready()
    assert cluster.process
    with cluster.http.stream(
        "POST", "/v1/completions", json=cluster.body([5], 1000, stream=True)
    ) as stream:
        lines = (line for line in stream.iter_lines() if line.startswith("data: "))
        next(lines)
        cluster.process.send_signal(signal.SIGINT)
        told = [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]
    assert told[-1]["error"]["code"] == "not_ready"
    assert cluster.wait_ended(FAILURE_DEADLINE) == 0, cluster.log
    assert not errors(cluster)
    cluster.assert_nothing_left()


def test_ranks_do_not_outlive_a_killed_launcher(start: Start, model: Path) -> None:
    cluster = start(Spec(ranks=2, models=folder_model(model))).wait_ready()
    assert cluster.process
    cluster.process.kill()
    cluster.process.wait()
    wait_until(lambda: not any(map(is_running, cluster.pids)), "the ranks have ended")
    wait_until(lambda: not taken(cluster.ports.all), "the ports are free")
