"""Makes a launchd property list or a systemd unit that keeps ./scripts/serve running: scripts/service.

Whatever a rank does is the launcher's affair; the service manager only starts the launcher, again if it fails,
and gives it time to stop its ranks on all hosts before it is killed.
"""

from __future__ import annotations

import argparse
import getpass
import os
import plistlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from config import program

SERVE = Path(__file__).resolve().with_name("serve")
NAME = "mlx-cluster"
STOP_SECONDS = 30  # launcher.job.GRACE, KILL_MARGIN, and as much again for hosts that don't answer
RETRY_SECONDS = 10
OPEN_FILES = 65536  # connections of clients, each on the launcher and on a rank
EXIT_USAGE = 2  # arguments or hostfile are wrong: starting again does not help
SEARCH = (
    "/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"  # launchd's has no Homebrew
)


@dataclass(frozen=True)
class Service:
    """What to run: `arguments` are those of ./scripts/serve, relative to `folder`."""

    name: str
    folder: Path
    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    user: str = ""  # of a service of the system; empty: a service of the user who loads it

    @property
    def words(self) -> list[str]:
        return [str(SERVE), *self.arguments]


def systemd_unit(service: Service) -> str:
    """The text of a unit."""
    unit = ["Description=One language model, served by several machines (mlx-cluster)"]
    if service.user:
        unit += ["Wants=network-online.target", "After=network-online.target"]
    settings = [
        "Type=exec",
        f"WorkingDirectory={_without_specifiers(str(service.folder))}",
        f"ExecStart={' '.join(_systemd_word(word, command=True) for word in service.words)}",
        *(
            f"Environment={_systemd_word(f'{name}={value}')}"
            for name, value in service.variables.items()
        ),
        *([f"User={service.user}"] if service.user else []),
        "Restart=on-failure",
        f"RestartSec={RETRY_SECONDS}",
        f"RestartPreventExitStatus={EXIT_USAGE}",
        "# The launcher alone is asked to stop, and stops its ranks in order, also on other hosts.",
        "KillMode=mixed",
        f"TimeoutStopSec={STOP_SECONDS}",
        f"LimitNOFILE={OPEN_FILES}",
        "NoNewPrivileges=yes",
    ]
    target = "multi-user.target" if service.user else "default.target"
    sections = {"Unit": unit, "Service": settings, "Install": [f"WantedBy={target}"]}
    return "\n".join(
        f"[{title}]\n" + "".join(f"{line}\n" for line in lines) for title, lines in sections.items()
    )


def _without_specifiers(text: str) -> str:
    """systemd replaces %x by what x stands for."""
    return text.replace("%", "%%")


def _systemd_word(word: str, command: bool = False) -> str:
    """One word as it stands in a list of words; in a command, systemd also replaces variables."""
    text = _without_specifiers(word).replace("\\", "\\\\").replace('"', '\\"')
    if command:
        text = text.replace("$", "$$")
    return text if re.fullmatch(r"[\w@%+=:,./-]+", text) else f'"{text}"'


def launchd_plist(service: Service) -> bytes:
    """The content of a property list.  Not run here: launchd is a part of macOS."""
    logs = Path("/Library/Logs") if service.user else Path.home() / "Library" / "Logs"
    log = str(logs / f"{service.name}.log")
    content: dict[str, object] = {
        "Label": service.name,
        "ProgramArguments": service.words,
        "WorkingDirectory": str(service.folder),
        "EnvironmentVariables": {"PATH": SEARCH, **service.variables},
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": RETRY_SECONDS,
        "ExitTimeOut": STOP_SECONDS,
        "ProcessType": "Interactive",  # else macOS may slow it down as background work
        "SoftResourceLimits": {"NumberOfFiles": OPEN_FILES},
        "HardResourceLimits": {"NumberOfFiles": OPEN_FILES},
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    if service.user:
        content["UserName"] = service.user
    return plistlib.dumps(content, sort_keys=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./scripts/service",
        description="Print a service file that keeps ./scripts/serve running on this machine.",
        usage="./scripts/service launchd|systemd [OPTIONS] [-- ARGUMENTS OF ./scripts/serve]",
        epilog="Paths in the arguments of serve may be relative to the folder you are in.",
    )
    parser.add_argument("manager", choices=["launchd", "systemd"])
    parser.add_argument("--system", action="store_true", help="run at boot; default: at your login")
    parser.add_argument("--user", help="who runs a --system service (default: you)")
    parser.add_argument("--name", default=NAME, help="of the service (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="a file (default: standard output)")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="may be repeated"
    )
    return parser


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    parser = _parser()
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own, serve = arguments[:end], arguments[end + 1 :]
    args = parser.parse_args(own)
    if args.user and not args.system:
        parser.error("--user is for --system: other services run as who loads them")
    for word in [args.name, *args.env, *serve]:
        if "\n" in word:
            parser.error(f"{word!r}: a service file has no words with line ends")
    for setting in args.env:
        if not re.fullmatch(r"[A-Za-z_]\w*=.*", setting):
            parser.error(f"--env {setting}: must be NAME=VALUE")
    service = Service(
        name=args.name,
        folder=Path.cwd(),
        arguments=tuple(serve),
        variables=dict(setting.split("=", 1) for setting in args.env),
        user=(args.user or os.environ.get("SUDO_USER") or getpass.getuser()) if args.system else "",
    )
    text = launchd_plist(service) if args.manager == "launchd" else systemd_unit(service).encode()
    if args.output is None:
        sys.stdout.buffer.write(text)
    else:
        args.output.write_bytes(text)
    return 0


if __name__ == "__main__":
    sys.exit(program.run(main))
