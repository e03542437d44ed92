"""Certificates of the cluster: a CA of its own, and what it signs.

The key of the CA (ca.key) belongs on one machine, best not one that serves; the others get bundles.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from config import ConfigError, load, program
from config.tls import GATEWAY, LAUNCHER
from server.tls.authority import DAYS
from server.tls.check import SOON, day
from server.tls.errors import TlsError
from server.tls.folder import Folder
from server.tls.identity import Identity, Kind

EXIT_SOON = 3  # of `show`: something expires soon, or has expired


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 with one sentence on stderr; of `show`, EXIT_SOON."""
    options = _parser().parse_args(arguments)
    try:
        config = load(options.config, os.environ).config
        now = datetime.now(timezone.utc)
        folder = Folder(options.folder or Path(config.tls.cluster.folder), now)
        status: int = options.run(options, folder, now, config.cluster.name)
    except (TlsError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/certs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, help="default: tls.cluster.folder")
    parser.add_argument("--config", type=Path, metavar="DIR", help="folder of network.yaml")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("init", help="make the CA, once")
    command.set_defaults(run=_init)

    command = commands.add_parser("node", help="make the certificate of a node of nodes.yaml")
    command.add_argument("name", metavar="NAME", nargs="+")
    _common(command, Kind.NODE)

    command = commands.add_parser("gateway", help="make the certificate of the gateway")
    command.set_defaults(name=[GATEWAY])
    _common(command, Kind.GATEWAY)

    command = commands.add_parser("launcher", help="make the certificate of the launcher")
    command.set_defaults(name=[LAUNCHER])
    _common(command, Kind.LAUNCHER)

    command = commands.add_parser(
        "client", help="make a certificate for a program that reads the ports of nodes"
    )
    command.add_argument("name", metavar="NAME", nargs="+")
    _common(command, Kind.CLIENT)

    command = commands.add_parser("renew", help="replace what expires soon, or what is named")
    command.add_argument("name", metavar="NAME", nargs="*")
    command.add_argument("--all", action="store_true", help="whenever it expires")
    _days(command)
    command.set_defaults(run=_renew)

    command = commands.add_parser(
        "show", help=f"tell when each expires; status {EXIT_SOON} if one does soon"
    )
    command.add_argument("--soon", type=_positive, default=SOON.days, metavar="DAYS")
    command.set_defaults(run=_show)

    command = commands.add_parser("bundle", help="pack what one machine needs, to copy it there")
    command.add_argument("name", metavar="NAME")
    command.add_argument("--output", type=Path, help="default: NAME.tar")
    command.set_defaults(run=_bundle)
    return parser


def _common(command: argparse.ArgumentParser, kind: Kind) -> None:
    command.add_argument(
        "--address",
        action="append",
        default=[],
        metavar="HOST",
        help="a host name or IP address that it names too; may be repeated",
    )
    _days(command)
    command.set_defaults(run=_add, kind=kind)


def _days(command: argparse.ArgumentParser) -> None:
    command.add_argument("--days", type=_positive, default=DAYS, help=f"default: {DAYS}")


def _positive(text: str) -> int:
    number = int(text)
    if not 0 < number < 36_500:
        raise argparse.ArgumentTypeError(f"{text} is not a number of days")
    return number


def _init(options: argparse.Namespace, folder: Folder, now: datetime, cluster: str) -> int:
    print(folder.init(cluster))
    return 0


def _add(options: argparse.Namespace, folder: Folder, now: datetime, cluster: str) -> int:
    for name in options.name:
        print(folder.add(Identity(options.kind, name), options.address, options.days))
    return 0


def _renew(options: argparse.Namespace, folder: Folder, now: datetime, cluster: str) -> int:
    if options.name:
        chosen = [folder.entry(name) for name in options.name]
    else:
        chosen = [e for e in folder.entries() if options.all or e.expires < now + SOON]
    if options.name and any(entry.holder is None for entry in chosen):
        raise TlsError(
            "The CA is not renewed: begin anew in another folder, and give all nodes new ones."
        )
    for entry in chosen:
        if entry.holder is not None:
            print(folder.renew(entry, options.days))
    return 0


def _show(options: argparse.Namespace, folder: Folder, now: datetime, cluster: str) -> int:
    late = False
    for entry in folder.entries():
        left = entry.expires - now
        soon = left < timedelta(days=options.soon)
        late = late or soon
        state = "EXPIRED" if left < timedelta(0) else f"{left.days} days"
        holder = entry.holder or "CA, with its key" if entry.has_key else entry.holder or "CA"
        mark = " !" if soon else ""
        print(f"{entry.path.name:24} {holder!s:24} {day(entry.expires)} ({state}){mark}")
    return EXIT_SOON if late else 0


def _bundle(options: argparse.Namespace, folder: Folder, now: datetime, cluster: str) -> int:
    target = options.output or Path(f"{options.name}.tar")
    folder.write_bundle(options.name, target)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(program.run(main))
