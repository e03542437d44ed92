"""`python -m launcher top`: what the dashboard shows, in a terminal."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from config import ConfigError, add_arguments, from_arguments
from launcher.commands.ask import KEY_VARIABLE, Refused, address_of, client_for
from launcher.commands.top_view import Seen, screen
from launcher.commands.watcher import Watcher

REFRESH_S = 1.0
ONCE_S = 10.0  # for the first look at everything


def run(arguments: Sequence[str]) -> int:
    """Exit status: 0, 1 if nothing answers (--once), 2 for bad arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m launcher top",
        description="Shows the nodes, the load and the requests in flight until q is pressed. "
        f"${KEY_VARIABLE} is the key, if any is needed.",
    )
    parser.add_argument("--url", help="address of the gateway (default: as configured)")
    parser.add_argument("--once", action="store_true", help="print it once")
    add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        config = from_arguments(args, os.environ).config
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    url = args.url.rstrip("/") if args.url else address_of(config)
    try:
        with client_for(config.tls, base_url=url) as client:
            watcher = Watcher(client)
            return _once(watcher, url) if args.once else _live(watcher)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _once(watcher: Watcher, url: str) -> int:
    seen = watcher.first(ONCE_S)
    if seen.picture is None and seen.status is None:
        print(f"error: {url}: {seen.fault}", file=sys.stderr)
        return 1
    _console().print(screen(seen))
    return 0


def _console() -> Console:
    """Takes no text for markup."""
    return Console(markup=False, highlight=False)


def _live(watcher: Watcher) -> int:
    ended = threading.Event()
    with watcher.running(), _quit_key(ended.set):
        console = _console()
        with Live(
            screen(Seen()), console=console, screen=console.is_terminal, auto_refresh=False
        ) as live:
            try:
                while not ended.wait(REFRESH_S):
                    live.update(screen(watcher.seen), refresh=True)
            except KeyboardInterrupt:
                pass
    return 0


@contextmanager
def _quit_key(act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` when q is pressed; where there is no terminal to press it, never."""
    if not sys.stdin.isatty():
        yield
        return
    import termios  # there is none on some systems, where there is no such terminal either
    import tty

    def read() -> None:
        while True:
            pressed = sys.stdin.read(1)
            if pressed in ("q", "Q", ""):
                act()
                return

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    threading.Thread(target=read, daemon=True).start()
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
