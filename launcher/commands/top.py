"""`python -m launcher top`: what the dashboard shows, in a terminal."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import httpx
from rich.console import Console
from rich.live import Live

from config import ConfigError, add_arguments, from_arguments
from launcher.commands.ask import KEY_VARIABLE, Refused, address_of, client_for
from launcher.commands.terminal import terminal
from launcher.commands.top_view import Seen, screen
from launcher.commands.watcher import Watcher

REFRESH_S = 1.0
ONCE_S = 10.0  # of silence, until there is a first look at everything


def run(arguments: Sequence[str]) -> int:
    """Exit status: 0, 1 if nothing answers (--once), 2 for bad arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m launcher top",
        description="Shows the nodes, the load and the requests in flight until q is pressed. "
        f"${KEY_VARIABLE} is the key, if any is needed.",
    )
    parser.add_argument("--url", help="address of the gateway (default: as configured)")
    parser.add_argument(
        "--once", action="store_true", help="print it once, as into a file or a pipe"
    )
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
            console = _console()
            if args.once or not console.is_terminal or console.is_dumb_terminal:
                return _once(client, console, url)
            return _live(client, console)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _once(client: httpx.Client, console: Console, url: str) -> int:
    seen = Watcher(client).first(ONCE_S)
    if seen.picture is None and seen.status is None:
        print(f"error: {url}: {seen.fault}", file=sys.stderr)
        return 1
    console.print(screen(seen))
    return 0


def _console() -> Console:
    """Takes no text for markup."""
    return Console(markup=False, highlight=False)


def _live(client: httpx.Client, console: Console) -> int:
    with terminal() as shown:
        watcher = Watcher(client, shown.wake)
        with (
            watcher.running(),
            Live(screen(Seen()), console=console, screen=True, auto_refresh=False) as live,
        ):
            while shown.wait(REFRESH_S):
                live.update(screen(watcher.seen), refresh=True)
    return 0
