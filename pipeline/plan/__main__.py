"""Print which node would hold which layers: python -m pipeline.plan --model M --nodes a:16GB,b:32GB:2.0

Starts no ranks and reads no weights.  Whatever is not given comes from the configuration.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError

import config
from config import program
from pipeline.errors import PipelineError, PlanError
from pipeline.plan.records import LayerRange, NodeResources
from pipeline.plan.solver import RESERVE_TOKENS, gigabytes, plan
from pipeline.plan.table import as_json, render
from pipeline.served_model import open_checkpoint

_BYTES = TypeAdapter(ByteSize)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        print(_report(options))
    except (PipelineError, config.ConfigError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.plan", description="Print which node would hold which layers."
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="a name of models.yaml, a folder, a hub id, or demo"
    )
    parser.add_argument(
        "--nodes",
        metavar="NAME[:MEMORY[:SPEED]],...",
        help="nodes in rank order, e.g. mini1:16GB,master:32GB:2.0; memory is what weights and "
        "caches may take; the nodes of nodes.yaml and the ranges of models.yaml when left out",
    )
    parser.add_argument("--config", type=Path, metavar="DIR", help="folder with the YAML files")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--reserve-tokens",
        type=int,
        default=RESERVE_TOKENS,
        metavar="N",
        help="tokens whose caches must fit next to the parameters (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="the stages alone, for programs")
    return parser


def _report(options: argparse.Namespace) -> str:
    settings = config.load(options.config, os.environ, options.set, {"model": options.model})
    nodes, explicit = (
        _configured(settings.config)
        if options.nodes is None
        else (_parse_nodes(options.nodes), None)
    )
    model = settings.config.model
    costs = open_checkpoint(settings.config, _say).costs()
    share = settings.config.cluster.prefill_share
    result = plan(
        costs, nodes, explicit, prefill_share=share, reserve_tokens=options.reserve_tokens
    )
    if options.json:
        return as_json(result)
    rule = f"balanced for a prefill_share of {share:g}" if explicit is None else "as configured"
    return (
        f"{model.name or model.source}: {costs.num_layers} layers, {rule}, "
        f"{gigabytes(costs.total_bytes)} of parameters\n{render(result)}"
    )


def _configured(
    settings: config.Config,
) -> tuple[list[NodeResources], tuple[LayerRange, ...] | None]:
    """Nodes and explicit ranges of the configuration; a node whose memory is `auto` has no limit here."""
    size = len(settings.nodes)
    nodes = [
        NodeResources(
            node.name,
            None if node.memory is None else int(node.memory * node.memory_share),
            node.speed,
        )
        for node in settings.nodes_of(size)
    ]
    ranges = settings.layer_ranges(size)
    if ranges is None:
        return nodes, None
    return nodes, tuple(LayerRange(layers.first, layers.last + 1) for layers in ranges)


def _parse_nodes(text: str) -> list[NodeResources]:
    if not text.strip():
        raise PlanError("--nodes names no node; write for example mini1:16GB,master:32GB.")
    return [_parse_node(part) for part in text.split(",")]


def _parse_node(text: str) -> NodeResources:
    name, *rest = text.strip().split(":")
    if not name or len(rest) > 2:
        raise PlanError(f"--nodes: {text!r} is not NAME, NAME:MEMORY or NAME:MEMORY:SPEED.")
    memory = rest[0] if rest else ""
    try:
        size = int(_BYTES.validate_python(memory)) if memory else None
        return NodeResources(name, size, float(rest[1]) if len(rest) > 1 else 1.0)
    except ValidationError as error:
        raise PlanError(f'--nodes: {memory!r} of {name} is not a size such as "16GB".') from error
    except ValueError as error:
        raise PlanError(f"--nodes: {rest[1]!r} of {name} is not a speed above 0.") from error


def _say(what: str, done: int, total: int) -> None:
    if done == 0:
        print(f"{what} ...", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(program.run(main))
