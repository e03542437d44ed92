"""Rendering with a deadline: the processes that do it, and what is done with one that does not answer."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from jinja2 import TemplateError, TemplateSyntaxError

ROOT = Path(__file__).parents[2]
_CHUNK = 1 << 16

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class RenderLimits:
    """Bounds of one rendering."""

    seconds: float = 5.0
    characters: int = 4 << 20
    start_seconds: float = 60.0  # for the process to be there: it imports transformers
    wait_seconds: float = 30.0  # for one of the processes to be free
    processes: int = 2  # one more than a template that hangs


class RenderingFailed(TemplateError):
    """The template took too long, made too much, or broke its process."""


@dataclass
class TemplateRenderer:
    """Renders the templates of one model.  Any thread may call it.

    templates: as in a tokenizer's `chat_template`; special: its special tokens, which templates see by name.
    """

    templates: str | Mapping[str, str]
    special: Mapping[str, Any]
    limits: RenderLimits = field(default_factory=RenderLimits)
    _idle: queue.LifoQueue[_Child | None] = field(default_factory=queue.LifoQueue, init=False)
    _closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        for _ in range(self.limits.processes):
            self._idle.put(None)  # started when it is needed

    def render(self, conversation: Sequence[Any], **options: Any) -> str:
        """The text; `options` as of apply_chat_template.

        Raises RenderingFailed, TemplateError if the template refuses, TemplateSyntaxError if it is none.
        """
        try:
            child = self._idle.get(timeout=self.limits.wait_seconds)
        except queue.Empty:
            raise RenderingFailed("other conversations take too long to be rendered") from None
        healthy = None
        try:
            if child is None:
                child = _Child(self.templates, self.special, self.limits.start_seconds)
            asked = {"conversation": conversation, "longest": self.limits.characters, **options}
            answer = child.ask(asked, self.limits.seconds)
            healthy = child
        finally:
            if healthy is None and child is not None:
                child.kill()
            self._idle.put(healthy)
            if self._closed:
                self.close()
        return _text(answer)

    def close(self) -> None:
        """End the processes that are idle, and those at work once they are done."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                child = self._idle.get_nowait()
                if child is not None:
                    child.kill()


def _text(answer: Mapping[str, Any]) -> str:
    if "text" in answer:
        text: str = answer["text"]
        return text
    if "line" in answer:
        raise TemplateSyntaxError(answer["error"], answer["line"])
    raise TemplateError(answer["error"])


class _Spare:
    """A process that was started before anybody knew what it is to render."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start it unless it is there.  It ends with this process."""
        with self._lock:
            self._process = self._process or _start()

    def drop(self) -> None:
        """End it: nothing is to be rendered here."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            _close(process)

    def take(self) -> subprocess.Popen[bytes]:
        """It, or one that is started now."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return _start()
        if process.poll() is not None:
            _close(process)
            return _start()
        return process


SPARE = _Spare()


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "server.templating.child"],
        cwd=ROOT,
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,  # Ctrl-C is not for it: it ends with its standard input
    )


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


class _Child:
    """One process."""

    def __init__(
        self, templates: str | Mapping[str, str], special: Mapping[str, Any], patience: float
    ) -> None:
        self._process = SPARE.take()
        self._rest = b""
        try:
            self.ask({"templates": templates, "special": special}, patience)
        except RenderingFailed as error:
            self.kill()
            raise RenderingFailed(f"no process to render in: {error}") from error

    def ask(self, question: Mapping[str, Any], patience: float) -> dict[str, Any]:
        """Its answer.  Raises RenderingFailed after `patience` seconds; it is of no more use then."""
        end = time.monotonic() + patience
        data = json.dumps(question).encode() + b"\n"
        writer = threading.Thread(target=self._write, args=(data,), daemon=True)
        if len(data) > select.PIPE_BUF:
            writer.start()  # a process that does not read must not hold this thread
        else:
            self._write(data)
        line = self._read_line(end)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it ended: reading tells
            view = memoryview(data)
            while view:
                view = view[self._process.stdin.write(view) :]

    def _read_line(self, end: float) -> bytes:
        assert self._process.stdout is not None
        parts = [self._rest]
        while b"\n" not in parts[-1]:
            ready, _, _ = select.select(
                [self._process.stdout], [], [], max(0.0, end - time.monotonic())
            )
            if not ready:
                raise RenderingFailed("it takes too long")
            data = os.read(self._process.stdout.fileno(), _CHUNK)
            if not data:
                raise RenderingFailed("it needs too much memory, or broke its process")
            parts.append(data)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        _close(self._process)


def _environment() -> dict[str, str]:
    """What Python needs to start, and none of the secrets that a server's environment may hold."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
