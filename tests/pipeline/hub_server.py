"""A hub of model folders on a local port: as much of the hub's HTTP as huggingface_hub asks for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"/api/models/([^/?]+/[^/?]+)(?:/(revision|tree)/([^/?]+))?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Hub:
    """`repositories`: id -> folder.  `gated`: ids that nobody may read.  `requests`: "GET path", in order.

    `downloads`: names of files that were asked for as a whole, not for a range of bytes.
    `held`: names of files of which only the first half comes before `go_on` is set.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.repositories: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []
        self.downloads: list[str] = []
        self.failing = False
        self.held: set[str] = set()
        self.go_on = Event()

    def forget_requests(self) -> None:
        self.requests.clear()
        self.downloads.clear()

    def weights(self) -> list[str]:
        return sorted(file for file in self.downloads if file.endswith(".safetensors"))


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.hub.failing:
            self._send(503, b"")
        elif match := _API.match(self.path):
            self._describe(*match.groups())
        elif match := _FILE.match(self.path):
            self._file(*match.groups())
        else:
            self._send(404, b"")

    def _folder(self, repository: str, revision: str | None) -> Path | None:
        if repository in self.hub.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif repository not in self.hub.repositories:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in (None, "main", COMMIT):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return self.hub.repositories[repository]
        return None

    def _describe(self, repository: str, what: str | None, revision: str | None) -> None:
        folder = self._folder(repository, revision)
        if folder is None:
            return
        files = sorted(file for file in folder.iterdir() if file.is_file())
        if what == "tree":
            body: object = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _etag(f)}
                for f in files
            ]
        else:
            body = {
                "id": repository,
                "sha": COMMIT,
                "siblings": [{"rfilename": f.name} for f in files],
            }
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: str, revision: str, name: str) -> None:
        folder = self._folder(repository, revision)
        if folder is None:
            return
        if not (folder / name).is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = (folder / name).read_bytes()
        headers = {"ETag": f'"{_etag(folder / name)}"', "X-Repo-Commit": COMMIT}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            self._send(206, content[start : end + 1], headers)
            return
        if self.command == "GET":
            self.hub.downloads.append(name)
        self._send(200, content, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(ConnectionError):
                self._write(body)

    def _write(self, body: bytes) -> None:
        if self.path.rsplit("/", 1)[-1] in self.hub.held and "Range" not in self.headers:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.hub.go_on.wait()
            body = body[len(body) // 2 :]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serve_hub() -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(server.server_address[1])
    server.RequestHandlerClass = type("Handler", (_Handler,), {"hub": hub})
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        thread.join(timeout=10)
        server.server_close()
