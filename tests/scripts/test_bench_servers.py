"""Servers that the benchmarks start: on free ports, alike, and stopped without a trace."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import config
from benchlib.ports import HOST, free_ports
from benchlib.servers import LocalServer, ServerFailed, descendants, is_alive, role
from benchlib.targets import MODEL, Setup, Target

ROOT = Path(__file__).parents[2]

# Answers /ready, and has a child that ignores requests to stop.
SERVER = """
import subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()

child = subprocess.Popen([sys.executable, "-c", STUBBORN])
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def local_server(tmp_path: Path, script: str, port: int) -> LocalServer:
    command = [sys.executable, "-c", script, str(port)]
    url = f"http://{HOST}:{port}"
    return LocalServer("a server", command, dict(os.environ), url, "m", "/ready", tmp_path)


def test_free_ports_are_consecutive_and_free() -> None:
    ports = free_ports(5)
    assert ports == list(range(ports[0], ports[0] + 5))
    for port in ports:
        with socket.socket() as sock:
            sock.bind((HOST, port))


def test_a_taken_port_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((HOST, 0)) as listener:
        taken = listener.getsockname()[1]
        monkeypatch.setattr("benchlib.ports._BLOCKS", [taken - 1])
        with pytest.raises(OSError, match="no 2 consecutive ports"):
            free_ports(2)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchlib.servers.STOP_DEADLINE", 0.5)


@pytest.mark.usefixtures("impatient")
def test_a_server_is_started_and_stopped_with_its_children(tmp_path: Path) -> None:
    with local_server(tmp_path, SERVER, free_ports(1)[0]) as server:
        assert server.is_healthy()
        processes = server.processes()
        assert len(processes) == 2
        assert role(processes[0]) == "server"
    assert not any(map(is_alive, processes))
    assert not server.is_healthy()
    assert server.processes() == []


def test_a_server_that_ends_is_an_error_with_its_log(tmp_path: Path) -> None:
    failing = "import sys; print('no such model', file=sys.stderr); sys.exit(3)"
    with (
        pytest.raises(ServerFailed, match=r"a server: ended with status 3\nno such model"),
        local_server(tmp_path, failing, free_ports(1)[0]),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["-m", "launcher.job"], {}, "launcher"),
        (["-m", "launcher"], {}, "launcher"),
        (["-m", "launcher.mlx_launch", "--", "-m", "server"], {}, "mlx.launch"),
        (["/somewhere/mlx.launch", "-n", "2"], {}, "mlx.launch"),
        (["-m", "server"], {"MLX_RANK": "2"}, "rank 2"),
        (["-m", "server.standby"], {"MLX_RANK": "2"}, "standby 2"),
        (["-m", "mlx_lm", "server"], {}, "server"),
    ],
)
def test_roles(arguments: list[str], environment: dict[str, str], expected: str) -> None:
    wait_for_stdin = [sys.executable, "-c", "print(flush=True); input()"]
    without_rank = {k: v for k, v in os.environ.items() if k != "MLX_RANK"}
    process = subprocess.Popen(
        [*wait_for_stdin, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=without_rank | environment,
    )
    try:
        assert process.stdout
        process.stdout.readline()  # it runs: before, its command line may still be empty
        assert role(psutil.Process(process.pid)) == expected
    finally:
        process.communicate(b"\n")


def test_a_process_that_is_gone_has_no_descendants() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert descendants(process.pid) == []


# targets


@pytest.mark.parametrize("text", ["ours:2", "ours:1", "mlx_lm", "mlx_lm_pipeline:3"])
def test_targets_are_read_as_they_are_written(text: str) -> None:
    assert str(Target.parse(text)) == text


@pytest.mark.parametrize("text", ["", "our:2", "ours:0", "ours:-1", "ours:x", "mlx_lm:2"])
def test_a_bad_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"ours:N|can't run"):
        Target.parse(text)


def test_the_configuration_is_valid_and_complete(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "model", settings=["scheduler.groups=2"])
    server = setup.server(Target("ours", 3), tmp_path)
    command = server._command
    folder = Path(command[command.index("--config") + 1])
    cfg = config.load(folder, {}, ["scheduler.groups=2"], {}).config
    assert (cfg.model.name, cfg.model.source) == (MODEL, str(tmp_path / "model"))
    assert server.url == f"http://{HOST}:{cfg.api_gateway.port}"
    assert len(cfg.nodes) == 3
    cfg.check_one_host(3)
    assert command[-2:] == ["--set", "scheduler.groups=2"]


def test_servers_get_the_same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXC_API_GATEWAY__PORT", "1")
    monkeypatch.setattr("benchlib.targets.blas_library", lambda: "libopenblas.so.0")
    monkeypatch.setenv("LD_PRELOAD", "libother.so")
    environment = Setup(Path("m"), blas_threads=2).environment()
    assert "MLXC_API_GATEWAY__PORT" not in environment
    assert environment["OPENBLAS_NUM_THREADS"] == "2"
    assert environment["LD_PRELOAD"] == "libopenblas.so.0:libother.so"


# over real ranks


@pytest.mark.ranks
def test_every_hop_of_three_ranks_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "link.json"
    command = [sys.executable, "scripts/bench_link.py", "--ranks", "3", "--count", "2"]
    command += ["--sizes", "4096", "1048576", "--json", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if " to " in line]
    assert [(line[0], line[2], line[3]) for line in lines if line[3] == "tensor"] == [
        (a, b, "tensor") for a, b in (("0", "1"), ("1", "2"), ("2", "0")) for _ in range(2)
    ]
    assert len(lines) == 12


@pytest.mark.ranks
def test_ranks_that_fail_are_an_error_of_one_sentence(tmp_path: Path) -> None:
    hostfile = tmp_path / "none.json"
    done = subprocess.run(
        [sys.executable, "scripts/bench_link.py", "--hostfile", str(hostfile)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "none.json: can't be read" in done.stderr
    assert "Traceback" not in done.stderr
