"""Looks at the node it runs on. It is sent to each node as a program, so it uses the standard library only, and
what the node's own environment offers beyond that where it is there.

`survey.program` appends the call; the answer is one line of JSON on standard output.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("mlx-cluster", "mlx", "mlx-lm", "transformers", "tokenizers", "grpcio", "protobuf")
SOURCES = ("config", "launcher", "pipeline", "server")
COMMAND_SECONDS = 5.0  # for a program of the system
LINK_SECONDS = 10.0  # for each step of a link's measurement
ROUND_TRIPS = 20
PING = b"ping"
BLOCK = 1 << 20
TRANSFER_SECONDS = 0.5
TRANSFER_LIMIT = 256 * BLOCK


def examine(request: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that `facts.NodeFacts` has."""
    began = time.time()
    sys.path.insert(0, os.getcwd())
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "code": _code_digest(Path.cwd()),
        **_configured(request),
        "ports": [_port(use, number) for use, number in request["ports"]],
        "interfaces": [interface(address) for address in request["addresses"]],
        "memory": _memory(),
        "disk": _disk(request["model"]),
        "open_files": _open_files(),
        "began": began,
        "ended": time.time(),
    }


# software


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _code_digest(root: Path) -> str:
    digest = hashlib.sha256()
    for package in SOURCES:
        for file in sorted((root / package).rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _configured(request: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the configuration as this node reads it; or why it can't be read."""
    nothing: dict[str, Any] = {"settings": {}, "files": [], "certificates": None}
    try:
        from config import ConfigError, load, settings_digests
    except ImportError as error:
        return {**nothing, "settings_error": f"the project can't be imported: {error}"}
    folder = request["config"]
    try:
        config = load(
            Path(folder) if folder else None,
            {**os.environ, **request["environ"]},
            request["overrides"],
            request["short"],
        ).config
    except ConfigError as error:
        return {**nothing, "settings_error": str(error)}
    return {
        "settings": settings_digests(config),
        "settings_error": "",
        "files": [_file(use, path) for use, path in _shared_files(config)],
        "certificates": _certificates(config.tls, request["node"]),
    }


def _shared_files(config: Any) -> Iterator[tuple[str, str | Path]]:
    """Of which every node must have the same, by the settings that name them."""
    yield "access.keys_file", config.access.keys_file
    yield "access.cluster_secret_file", config.access.cluster_secret_file
    if config.access.jwt.secret_file is not None:
        yield "access.jwt.secret_file", config.access.jwt.secret_file
    if config.tls.cluster.enabled:
        yield "tls.cluster.ca", config.tls.cluster.ca_path


def _certificates(tls: Any, node: str) -> dict[str, Any] | None:
    """Whether this node's certificates can be used, as a rank would find; None where there is no TLS."""
    gateway = tls.gateway_paths()
    if gateway is None and not tls.cluster.enabled:
        return None
    from server.tls.check import SOON, day, read_certificate
    from server.tls.contexts import node_tls
    from server.tls.errors import TlsError
    from server.tls.gateway import gateway_tls

    try:
        node_tls(tls, node)
        gateway_tls(tls)
        paths = [gateway[0]] if gateway else []
        paths += [tls.cluster.paths_of(node)[0], tls.cluster.ca_path] if tls.cluster.enabled else []
        ends = min(read_certificate(path, "tls").not_valid_after_utc for path in paths)
    except TlsError as error:
        return {"error": str(error), "ends": "", "soon": False}
    soon = ends.timestamp() < time.time() + SOON.total_seconds()
    return {"error": "", "ends": day(ends), "soon": soon}


def _open_files() -> int:
    """The hard limit; -1 without one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return -1 if hard == resource.RLIM_INFINITY else hard


# network


def _port(use: str, number: int) -> dict[str, Any]:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("", number))
            sock.listen()
        except OSError as error:
            reason = error.strerror or str(error)
            return {"use": use, "number": number, "error": reason, "user": _user_of(number)}
    return {"use": use, "number": number}


def _user_of(port: int) -> str:
    """The process that listens on `port`, or "": macOS tells it to root only."""
    try:
        import psutil
    except ImportError:
        return ""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1:2] == (port,):
                process = psutil.Process(connection.pid)
                return f"{process.pid} ({' '.join(process.cmdline()[:4])})"
    except psutil.Error:
        pass
    return ""


def interface(address: str) -> dict[str, Any]:
    """The interface that has `address`."""
    try:
        import psutil
    except ImportError:
        return {"address": address}
    host = socket.gethostbyname(address)
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == host for entry in entries):
            state = psutil.net_if_stats()[name]
            return {
                "address": address,
                "name": name,
                "kind": _kind(name),
                "up": state.isup,
                "mbits": state.speed,
            }
    return {"address": address}


def _kind(name: str) -> str:
    if name.startswith("lo"):
        return "loopback"
    if sys.platform == "darwin":
        return _mac_kind(name)
    device = Path("/sys/class/net") / name
    if (device / "wireless").exists() or (device / "phy80211").exists():
        return "wifi"
    if name.startswith("thunderbolt"):
        return "thunderbolt"
    try:
        kind = int((device / "type").read_text())
    except OSError:
        return "other"
    return "ethernet" if kind == 1 else "other"  # ARPHRD_ETHER


def _mac_kind(name: str) -> str:  # needs macOS: not run on Linux
    """From the names that macOS gives to its hardware ports; a bridge is what joins Thunderbolt ports."""
    port = ""
    for line in _output("networksetup", "-listallhardwareports").splitlines():
        key, _, value = line.partition(": ")
        if key == "Hardware Port":
            port = value
        elif key == "Device" and value == name:
            break
    else:
        return "other"
    words = {
        "Wi-Fi": "wifi",
        "Thunderbolt": "thunderbolt",
        "Ethernet": "ethernet",
        "LAN": "ethernet",
    }
    return next((kind for word, kind in words.items() if word in port), "other")


def _output(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


# memory and files


def _memory() -> dict[str, Any] | None:
    try:
        import psutil
    except ImportError:
        return None
    memory = psutil.virtual_memory()
    wired = None
    if sys.platform == "darwin":  # needs macOS: not run on Linux
        wired = int(_output("sysctl", "-n", "iogpu.wired_limit_mb").strip() or 0) * BLOCK
    return {"total": memory.total, "available": memory.available, "wired_limit": wired}


def _disk(model: Mapping[str, str]) -> dict[str, Any]:
    folder = _model_folder(model)
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    held = sum(_size(file) for file in folder.rglob("*.safetensors"))
    return {
        "folder": str(folder),
        "free": shutil.disk_usage(place).free,
        "held": held,
        "found": folder.is_dir(),
    }


def _model_folder(model: Mapping[str, str]) -> Path:
    source = model["source"]
    if model["kind"] == "folder":
        return Path(source).expanduser()
    if model["kind"] == "hub":
        home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
        hub = os.environ.get("HF_HUB_CACHE") or f"{home}/hub"
        return Path(hub).expanduser() / f"models--{source.replace('/', '--')}"
    cache = "Library/Caches" if sys.platform == "darwin" else ".cache"
    default = os.environ.get("XDG_CACHE_HOME") or Path.home() / cache
    return Path(model["cache"] or os.environ.get("MLXC_CACHE_DIR") or Path(default) / "mlx-cluster")


def _size(file: Path) -> int:
    """Of the file that a link leads to; 0 for a link to nothing, as an interrupted download leaves it."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _file(use: str, path: str | Path) -> dict[str, Any]:
    fact: dict[str, Any] = {"use": use, "path": str(path)}
    try:
        with Path(path).expanduser().open("rb") as file:
            mode, content = os.fstat(file.fileno()).st_mode, file.read()
    except FileNotFoundError as error:
        return {**fact, "found": False, "error": error.strerror}
    except OSError as error:
        return {**fact, "error": error.strerror or str(error)}
    digest = hashlib.sha256(content).hexdigest()[:12]
    return {**fact, "open_to_others": bool(mode & 0o077), "digest": digest}


# links


def answer_link(address: str, port: int) -> Iterator[dict[str, Any]]:
    """The side that listens: first that it does, at the end how many bytes came."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.settimeout(LINK_SECONDS)
        server.bind((address, port))
        server.listen()
        yield {"listening": port}
        connection, _ = server.accept()
    with connection:
        connection.settimeout(LINK_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(ROUND_TRIPS):
            connection.sendall(_receive(connection, len(PING)))
        received, block = 0, bytearray(BLOCK)
        while count := connection.recv_into(block):
            received += count
        connection.sendall(received.to_bytes(8, "big"))
    yield {"received": received}


def measure_link(address: str, port: int) -> dict[str, Any]:
    """The side that connects: everything that `facts.LinkFacts` has."""
    with socket.create_connection((address, port), timeout=LINK_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seconds = []
        for _ in range(ROUND_TRIPS):
            start = time.perf_counter()
            connection.sendall(PING)
            _receive(connection, len(PING))
            seconds.append(time.perf_counter() - start)
        start, sent, block = time.perf_counter(), 0, bytes(BLOCK)
        while sent < TRANSFER_LIMIT and time.perf_counter() < start + TRANSFER_SECONDS:
            connection.sendall(block)
            sent += BLOCK
        connection.shutdown(socket.SHUT_WR)
        received = int.from_bytes(_receive(connection, 8), "big")
        rate = received / (time.perf_counter() - start)
        own = str(connection.getsockname()[0])
    return {
        "interface": interface(own),
        "seconds": statistics.median(seconds),
        "bytes_per_second": rate,
    }


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the other side has closed the connection")
        data += part
    return data


def say(answer: Mapping[str, Any]) -> None:
    """One line, which whoever asked reads."""
    print(json.dumps(answer), flush=True)
