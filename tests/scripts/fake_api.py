"""A small server that answers completions as its prompts say, over real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENOUGH = 20.0  # seconds; a test that waits so long has failed

Answer = Callable[["Handler"], None]


class FakeApi(ThreadingHTTPServer):
    """`answer` is called for each request, in a thread of its own."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.ended = threading.Semaphore(0)  # released once for each answer that is over

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: FakeApi
    body: dict[str, Any]

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(self.body)
        try:
            self.server.answer(self)
        except ConnectionError:
            self.close_connection = True
        finally:
            self.server.ended.release()

    def begin(self, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def raw(self, text: str) -> None:
        self.wfile.write(text.encode())
        self.wfile.flush()

    def event(self, **fields: Any) -> None:
        self.raw(f"data: {json.dumps(fields)}\n\n")

    def text(self, text: str, finish: str | None = None) -> None:
        self.event(choices=[{"index": 0, "text": text, "finish_reason": finish}])

    def usage(self, prompt: int, completion: int) -> None:
        self.event(choices=[], usage={"prompt_tokens": prompt, "completion_tokens": completion})

    def done(self) -> None:
        self.raw("data: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


def complete(handler: Handler) -> None:
    """As many words as tokens are asked for."""
    count = handler.body["max_tokens"]
    handler.begin()
    for _ in range(count):
        handler.text("word ")
    handler.text("", "length")
    handler.usage(7, count)
    handler.done()


@contextmanager
def serving(answer: Answer) -> Iterator[FakeApi]:
    """A running FakeApi."""
    with FakeApi(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(ENOUGH)
