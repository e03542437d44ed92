#!/usr/bin/env python3
"""What hidden states in fewer bytes cost: error of the output, and bytes of one token on one hop.

    python scripts/bench_activations.py [--model FOLDER] [--stages 3] [--tokens 512] [--text FILE ...]

Each text goes through the same stages once per format of network.activation_format, in one process.  The
output distributions of all positions are compared with those of `native`: Kullback-Leibler divergence in
nats, how often the likeliest token is another one, and the largest difference of a log-probability among the
native top ten.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from benchlib.options import positive, run, say
from benchlib.report import (
    Column,
    add_output_arguments,
    check_output,
    new_figure,
    save_figure,
    table,
    write_json,
)
from benchlib.targets import demo_model
from pipeline.checkpoint import Checkpoint
from pipeline.split import ActivationFormat, Message, Stage, flatten, pack, unflatten, unpack

ROOT = Path(__file__).resolve().parents[1]
TEXTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "pyproject.toml")
FORMATS: tuple[ActivationFormat, ...] = get_args(ActivationFormat)
TOP = 10
COLUMNS = (
    Column("format", "format"),
    Column("bytes", "bytes/token/hop", ".0f"),
    Column("kl_mean", "KL mean", ".2e"),
    Column("kl_p99", "KL p99", ".2e"),
    Column("kl_max", "KL max", ".2e"),
    Column("other_token", "other likeliest, %", ".2f"),
    Column("logprob_max", "logprob off by at most", ".4f"),
)

LogProbs = npt.NDArray[np.float32]


def load_stages(model: Path, count: int) -> list[Stage]:
    """The model in `count` stages of about equal length."""
    checkpoint = Checkpoint.open(str(model))
    layers = checkpoint.num_layers
    edges = [layers * i // count for i in range(count + 1)]
    return [checkpoint.load_stage(start, end) for start, end in pairwise(edges)]


def forward(
    stages: Sequence[Stage], tokens: Sequence[int], form: ActivationFormat
) -> tuple[LogProbs, float]:
    """Log-probabilities [positions, vocabulary], and bytes for one token on one hop."""
    state: Any = mx.array([tokens], mx.int32)
    sent = 0
    for stage in stages:
        state = stage(state, stage.make_cache(), 0)
        if isinstance(state, Message):
            specs, arrays = pack(*flatten(state), form)
            sent += sum(spec.nbytes for spec in specs)
            state = unflatten(state.tokens, *unpack(specs, arrays))
    logits = state[0].astype(mx.float32)
    probabilities = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    return probabilities, sent / len(tokens) / max(len(stages) - 1, 1)


def compare(native: LogProbs, other: LogProbs) -> dict[str, LogProbs]:
    """Per position: divergence of `other` from `native`, whether they differ, largest log-prob difference."""
    likeliest = np.argsort(native, axis=-1)[:, -TOP:]
    differences = np.abs(native - other)
    return {
        "kl": np.sum(np.exp(native) * (native - other), axis=-1),
        "other": (native.argmax(-1) != other.argmax(-1)).astype(np.float32),
        "off": np.take_along_axis(differences, likeliest, axis=-1).max(-1),
    }


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each format."""
    model = args.model or demo_model()
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    prompts = [
        tokenizer.encode(path.read_text(encoding="utf-8")).ids[: args.tokens] for path in args.text
    ]
    stages = load_stages(model, args.stages)
    found: dict[ActivationFormat, list[dict[str, LogProbs]]] = {form: [] for form in FORMATS}
    size = dict.fromkeys(FORMATS, 0.0)
    for prompt in prompts:
        native, _ = forward(stages, prompt, "native")
        for form in FORMATS:
            say(f"{len(prompt)} tokens, {form}")
            other, size[form] = forward(stages, prompt, form)
            found[form].append(compare(native, other))
    return [{"format": form, "bytes": size[form], **summary(found[form])} for form in FORMATS]


def summary(parts: Sequence[dict[str, LogProbs]]) -> dict[str, float]:
    """The figures over all positions of all texts."""
    kl, other, off = (np.concatenate([p[key] for p in parts]) for key in ("kl", "other", "off"))
    return {
        "kl_mean": float(kl.mean()),
        "kl_p99": float(np.percentile(kl, 99)),
        "kl_max": float(kl.max()),
        "other_token": float(100 * other.mean()),
        "logprob_max": float(off.max()),
    }


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Divergence over the bytes that travel."""
    figure = new_figure(1)
    [axes] = figure.axes
    for row in rows:
        if row["kl_mean"] > 0:
            axes.plot(row["bytes"], row["kl_mean"], "o", label=row["format"])
    axes.set(title="mean KL divergence, nats", xlabel="bytes per token and hop", yscale="log")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="model folder; default: the demo model as qwen2")
    parser.add_argument("--stages", type=positive, default=3, help="default: 3")
    parser.add_argument("--tokens", type=positive, default=512, help="of each text; default: 512")
    parser.add_argument(
        "--text",
        type=Path,
        nargs="+",
        default=TEXTS,
        metavar="FILE",
        help="default: the README, ...",
    )
    add_output_arguments(parser)
    args = parser.parse_args()
    check_output(parser, args)
    rows = measure(args)
    print(table(COLUMNS, rows))
    write_json(args, benchmark="activations", rows=rows)
    if args.plot:
        draw(rows, args.plot)


if __name__ == "__main__":
    sys.exit(run(main))
