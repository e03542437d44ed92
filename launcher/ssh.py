"""Commands on other hosts, reached as mlx.launch reaches them, but without questions and without long waits."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.hostfile import LOCAL

LOGIN_TIMEOUT = 5  # seconds for the connection and the handshake, each
EXIT_SSH = 255  # ssh itself has failed; every other status is the command's
OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={LOGIN_TIMEOUT}")


@dataclass(frozen=True)
class Answer:
    """What a command said. `problem` is one sentence when it was not run, did not end or failed, else empty."""

    output: str
    problem: str = ""
    status: int | None = 0  # None: it was not run, or did not end


def remote_words(host: str, command: Sequence[str]) -> list[str]:
    """`command` for `subprocess`, on `host`; on this machine without ssh, as mlx.launch does."""
    return list(command) if host == LOCAL else ["ssh", *OPTIONS, host, shlex.join(command)]


def run_on(host: str, command: Sequence[str], timeout: float, given: str = "") -> Answer:
    """Run `command` on `host` with `given` as its input."""
    words = remote_words(host, command)
    try:
        done = subprocess.run(
            words, input=given, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return Answer("", f"{host} does not answer within {timeout:g} s", None)
    except OSError as error:
        return Answer("", f"{words[0]} can't be run: {error.strerror}", None)
    if done.returncode == 0:
        return Answer(done.stdout)
    said = [line for line in done.stderr.splitlines() if line.strip()]
    last = said[-1].strip() if said else f"exit status {done.returncode}"
    if done.returncode == EXIT_SSH and host != LOCAL:
        return Answer(done.stdout, f"ssh to {host} fails: {last}", done.returncode)
    where = "" if host == LOCAL else f"{command[0]} on {host}: "
    return Answer(done.stdout, where + last, done.returncode)


def why_no_login(host: str, patience: float = 3 * LOGIN_TIMEOUT) -> str:
    """Why commands can't be run on `host`, in one sentence; empty if they can."""
    return run_on(host, ["true"], patience).problem
