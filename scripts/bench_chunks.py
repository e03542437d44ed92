#!/usr/bin/env python3
"""What it saves to prefill several short prompts in one step: one process, whole model, taken in turns.

    python scripts/bench_chunks.py --lengths 4 16 48 128 --rows 2 4 8

Milliseconds for each prompt, medians: alone, and as one of so many rows.  The last line is the time of a step
beside its tokens, in tokens (least squares over single prompts): up to so much padding, a row costs less than a
step of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

from benchlib.report import Column, add_output_arguments, check_output, table, write_json
from config import program
from pipeline.checkpoint import Checkpoint
from pipeline.chunks import ChunkSizes
from pipeline.demo_model import ensure_demo_model
from pipeline.frames import Admission, Prefill, Step
from pipeline.request import SamplingParams
from pipeline.ring import Ring
from pipeline.sampler import Sampler
from pipeline.worker import Worker

STEP_TIMEOUT = 600.0  # seconds
WARM_UP = 1  # rounds


class Prompts:
    """Prompts of any length on a worker; no two tokens in a row are the same."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._steps = self._next = 0

    def seconds(self, rows: int, length: int) -> float:
        """One step over `rows` new prompts; they are released before the next one."""
        first, self._next = self._next, self._next + rows
        sequences = tuple(range(first, self._next))
        admitted = tuple(Admission(sequence, SamplingParams()) for sequence in sequences)
        tokens = tuple(tuple(100 + (row + i) % 900 for i in range(length)) for row in sequences)
        started = time.perf_counter()
        self._run(Step(self._steps, admitted=admitted, work=Prefill(sequences, tokens)))
        took = time.perf_counter() - started
        self._run(Step(self._steps, released=sequences))
        return took

    def _run(self, step: Step) -> None:
        self._worker.run(step)
        self._steps += 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="an MLX model folder; left out: the demo model")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4, 16, 48, 128])
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    add_output_arguments(parser)
    options = parser.parse_args()
    check_output(parser, options)
    checkpoint = Checkpoint.open(options.model or ensure_demo_model())
    blueprint = checkpoint.blueprint()
    stage = checkpoint.load_stage(0, blueprint.num_layers, lambda *_: None)
    sampler = Sampler(checkpoint.vocab_size)
    prompts = Prompts(Worker(stage, blueprint.passes, Ring(), None, sampler, STEP_TIMEOUT))
    sizes = ChunkSizes(stages=1)
    found: dict[tuple[int, int], list[float]] = {}
    for number in range(WARM_UP + options.rounds):
        for length in options.lengths:
            for rows in (1, *options.rows):
                took = prompts.seconds(rows, length)
                if number >= WARM_UP:
                    found.setdefault((length, rows), []).append(1e3 * took / rows)
                    if rows == 1:
                        sizes.observe(length, took)
    medians = {key: statistics.median(times) for key, times in found.items()}
    lines = [
        {"tokens": length, **{f"rows{rows}": medians[length, rows] for rows in (1, *options.rows)}}
        for length in options.lengths
    ]
    columns = [Column("tokens", "tokens", ".0f"), Column("rows1", "alone")]
    columns += [Column(f"rows{rows}", f"one of {rows}") for rows in options.rows]
    print(table(columns, lines))
    print(f"\nA step beside its tokens: {sizes.fixed_tokens():.0f} tokens")
    write_json(options, rounds=lines, fixed_tokens=sizes.fixed_tokens())


if __name__ == "__main__":
    sys.exit(program.run(main))
