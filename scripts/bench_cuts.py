#!/usr/bin/env python3
"""What it costs by itself to cut a model in pieces: one process decodes, in 1, 2 and 3 evaluations for a token.

    python scripts/bench_cuts.py --model FOLDER --pieces 1 2 3

Each piece waits for its result, copies it out and into the next one, as the stages of a pipeline do with small
hidden states; there are no frames, no other process and no waiting for either.  The graphs of all pieces are
built first, on blanks, as later stages do while earlier ones compute.  Medians in microseconds: `build` the
graph of the first piece; then, of all pieces together, `enqueue` until MLX has given all operations to the
device, `wait` until the result is there, and `copy`.  The rest of the graphs, which a pipeline builds beside
computing, is not counted.  MLX's own variables (MLX_MAX_OPS_PER_BUFFER and others) show what they change.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np

from benchlib.options import Row, new_parser, parse, positive, run, run_rounds
from benchlib.report import Column, table, write_json
from benchlib.stats import medians_by
from pipeline.checkpoint import Checkpoint
from pipeline.demo_model import ensure_demo_model
from pipeline.errors import ModelError
from pipeline.parcel import Blank, unwrapped, wrapped
from pipeline.split import Message, flatten, unflatten

WARM_UP = 10  # tokens

COLUMNS = (
    Column("pieces", "pieces", "d"),
    Column("token_us", "token, us", ".0f"),
    Column("build_us", "build", ".0f"),
    Column("enqueue_us", "enqueue", ".0f"),
    Column("wait_us", "wait", ".0f"),
    Column("copy_us", "copy", ".0f"),
    Column("cut_us", "each cut, us", ".0f"),
)
PARTS = ("build", "enqueue", "wait", "copy")


class Pieces:
    """A whole model as stages in one process, with one sequence."""

    def __init__(self, checkpoint: Checkpoint, count: int, prompt: int) -> None:
        layers = checkpoint.blueprint().num_layers
        ends = [layers * (i + 1) // count for i in range(count)]
        starts = [0, *ends[:-1]]
        self._stages = [checkpoint.load_stage(a, b) for a, b in zip(starts, ends, strict=True)]
        self._caches = [stage.make_cache() for stage in self._stages]
        self._token = 1
        inputs: mx.array | Message = mx.arange(prompt, dtype=mx.int32)[None]
        for stage, caches in zip(self._stages, self._caches, strict=True):
            inputs = stage(inputs, caches)
        mx.eval([cache.state for caches in self._caches for cache in caches])

    def step(self) -> dict[str, float]:
        """One token: seconds of each part."""
        spent = dict.fromkeys(PARTS, 0.0)
        began = time.perf_counter()
        tokens = mx.array([[self._token]], mx.int32)
        output = self._stages[0](tokens, self._caches[0])
        spent["build"] = time.perf_counter() - began
        parcels, blanks = [], []
        for stage, caches in zip(self._stages[1:], self._caches[1:], strict=True):
            assert isinstance(output, Message), "a piece that is not the last one"
            specs, arrays = flatten(output)
            parcels.append((wrapped(arrays), specs))
            blanks.append(Blank(specs))
            output = stage(unflatten(tokens, specs, blanks[-1].arrays), caches)
        assert isinstance(output, mx.array), "the last piece"
        chosen = mx.argmax(output[:, -1], axis=-1)
        for (parcel, specs), blank in zip(parcels, blanks, strict=True):
            copied = evaluate(parcel, spent)
            blank.fill(unwrapped(parcel, specs))
            spent["copy"] += time.perf_counter() - copied
        copied = evaluate(chosen, spent)
        self._token = int(np.array(chosen)[0])
        spent["copy"] += time.perf_counter() - copied
        return spent


def evaluate(array: mx.array, spent: dict[str, float]) -> float:
    """Compute it; adds what that took to `spent` and returns now."""
    began = time.perf_counter()
    mx.async_eval(array)  # type: ignore[no-untyped-call]
    enqueued = time.perf_counter()
    mx.eval(array)
    ended = time.perf_counter()
    spent["enqueue"] += enqueued - began
    spent["wait"] += ended - enqueued
    return ended


def one_round(args: argparse.Namespace, number: int) -> list[Row]:
    """Every number of pieces."""
    checkpoint = Checkpoint.open(args.model.resolve() if args.model else ensure_demo_model())
    layers = checkpoint.blueprint().num_layers
    if max(args.pieces) > layers:
        raise ModelError(f"--pieces {max(args.pieces)}: the model has only {layers} layers")
    rows = []
    for count in args.pieces:
        pieces = Pieces(checkpoint, count, args.prompt)
        steps = [pieces.step() for _ in range(WARM_UP + args.tokens)][WARM_UP:]
        row: Row = {"pieces": count}
        row |= {f"{part}_us": 1e6 * statistics.median(s[part] for s in steps) for part in PARTS}
        row["token_us"] = 1e6 * statistics.median(sum(s.values()) for s in steps)
        rows.append(row)
    return rows


def report(args: argparse.Namespace, rows: list[Row], of_what: str) -> None:
    """Show and write the results."""
    summary = medians_by(rows, "pieces")
    whole = next((row["token_us"] for row in summary if row["pieces"] == 1), None)
    for row in summary:
        if whole is not None and row["pieces"] > 1:
            row["cut_us"] = (row["token_us"] - whole) / (row["pieces"] - 1)
    print(f"\nOne process, one sequence; {of_what}.\n\n{table(COLUMNS, summary)}")
    write_json(args, benchmark="cuts", summary=summary, rounds=rows)


def main() -> None:
    parser = new_parser(__doc__, rounds=3)
    parser.add_argument("--model", type=Path, help="an MLX model folder; default: the demo model")
    parser.add_argument("--pieces", type=positive, nargs="+", default=[1, 2, 3])
    parser.add_argument("--prompt", type=positive, default=32, help="tokens; default: 32")
    parser.add_argument("--tokens", type=positive, default=100, help="output; default: 100")
    args = parse(parser)
    run_rounds(args.rounds, partial(one_round, args), partial(report, args))


if __name__ == "__main__":
    sys.exit(run(main))
