"""What a survey is about, and how the probe is run on a host."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from config import Config, NodeConfig
from launcher.ssh import Answer, run_on

PROBE_SECONDS = 30.0  # for a node's answer; a slow disk reads the project's packages in some
NO_FOLDER, NO_PYTHON = 71, 72  # exit statuses of what starts a probe

# Standard input is the program; $1 is the checkout, $2 its interpreter.
START = f'cd "$1" || exit {NO_FOLDER}; [ -x "$2" ] || exit {NO_PYTHON}; exec "$2" -'


@dataclass(frozen=True)
class Place:
    """One rank: its node, the name for ssh, and the addresses of the hostfile."""

    node: NodeConfig
    host: str
    addresses: tuple[str, ...]

    @property
    def address(self) -> str:
        """Where the other nodes reach it."""
        return self.addresses[0] if self.addresses else self.node.host


@dataclass(frozen=True)
class Question:
    """What is checked. The fields from `directory` on are those of the server that led to `config` here."""

    config: Config
    places: tuple[Place, ...]
    starting_port: int
    directory: Path | None = None
    overrides: tuple[str, ...] = ()
    model: str | None = None
    port: int | None = None


def run_probe(host: str, call: str) -> Answer:
    """Run the probe on `host` in the environment of its checkout; `call` is its last statement."""
    return run_on(host, probe_command(), PROBE_SECONDS, program(call))


def probe_command() -> list[str]:
    return ["sh", "-c", START, "-", *environment()]


def environment() -> tuple[str, str]:
    """Checkout and interpreter: at the same paths on every node, as mlx.launch wants them."""
    return str(Path.cwd()), sys.executable


def program(call: str) -> str:
    source = Path(__file__).with_name("probe.py").read_text(encoding="utf-8")
    return f"{source}\n\n{call}\n"


def literal(value: object) -> str:
    """`value`, which JSON can tell, as Python source."""
    return f"json.loads({json.dumps(value)!r})"


def last_line(output: str) -> str:
    """A shell may greet before the answer comes."""
    return output.strip().rpartition("\n")[2]
