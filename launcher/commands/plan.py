"""`python -m launcher plan`: who would lead and who would get which layers, without starting anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from config import ConfigError, NodeConfig, render
from launcher.arguments import cluster_of, make_parser, server_arguments, settings_of
from launcher.election import Candidate, elect
from launcher.hostfile import HostfileError
from launcher.scratch import Scratch


def run(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 if there is no plan."""
    parser = make_parser("python -m launcher plan", __doc__)
    args = parser.parse_args(arguments)
    try:
        settings = settings_of(args)
        if args.print_config:
            print(render(settings))
            return 0
        with Scratch() as scratch:
            _, cluster = cluster_of(args, settings, Path(scratch))
        coordinator = settings.config.coordinator
        candidates = [Candidate(member.name) for member in cluster.members]
        wanted = coordinator.leader if coordinator.election_strategy == "manual" else None
        order = elect(candidates, coordinator.election_strategy, wanted=wanted)
        more, note = cluster.arguments(order, lambda settings: settings_of(args, settings))
    except (ConfigError, HostfileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if note:
        print(note, file=sys.stderr)
    print(f"{order[0]} leads ({coordinator.election_strategy})", flush=True)
    # A process of its own: reading a model takes MLX, which the launcher does without.
    command = [sys.executable, "-m", "pipeline.plan"]
    if set(order) != set(settings.config.nodes):
        members = cluster.named(order)
        command += ["--nodes", ",".join(_described(member.node) for member in members)]
    args.port = None
    command += [*server_arguments(args), *more]
    return subprocess.run(command, check=False).returncode


def _described(node: NodeConfig) -> str:
    memory = "" if node.memory is None else str(int(node.memory * node.memory_share))
    return f"{node.name}:{memory}:{node.speed}"
