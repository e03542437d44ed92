"""Measure the sampler: host and total time per call, over batch sizes and parameters.

    python scripts/bench_sampler.py [--vocab 49152 ...] [--batch 1 ...] [--rounds 20] [--json FILE]

`host` is the time of the call that builds the graph, when the device idles; `total` runs until the
tokens are on the host and in the histories.  Both are medians in microseconds.  Logits are normal with
standard deviation 3, which is flatter than a language model's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from config import program
from pipeline.request import SamplingParams
from pipeline.sampler import Sampler

CASES = {
    "greedy": SamplingParams(temperature=0.0),
    "greedy, 5 logprobs": SamplingParams(temperature=0.0, logprobs=5),
    "temperature": SamplingParams(temperature=0.8),
    "min_p 0.05": SamplingParams(temperature=0.8, min_p=0.05),
    "top_k 40": SamplingParams(temperature=0.8, top_k=40),
    "top_k 40, top_p 0.9": SamplingParams(temperature=0.8, top_k=40, top_p=0.9),
    "top_p 0.9": SamplingParams(temperature=0.8, top_p=0.9),
    "greedy, penalties": SamplingParams(
        temperature=0.0, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.5
    ),
}
PROMPT_TOKENS = 2000
WARM_UP_CALLS = 3


def measure(params: SamplingParams, vocab: int, batch: int, rounds: int) -> dict[str, float]:
    """Time calls with recorded tokens on fixed logits; medians in microseconds."""
    sampler = Sampler(vocab)
    prompt = [token * 17 % vocab for token in range(PROMPT_TOKENS)]
    sequences = list(range(batch))
    for sequence in sequences:
        sampler.add(sequence, params, prompt)
    logits = mx.random.normal((batch, vocab), key=mx.random.key(batch)) * 3
    mx.eval(logits)
    host, total = [], []
    for _ in range(WARM_UP_CALLS + rounds):
        start = time.perf_counter()
        sampled = sampler(logits, sequences)
        built = time.perf_counter()
        sampled.record()
        host.append(built - start)
        total.append(time.perf_counter() - start)
    return {
        "host": statistics.median(host[WARM_UP_CALLS:]) * 1e6,
        "total": statistics.median(total[WARM_UP_CALLS:]) * 1e6,
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab", type=int, nargs="+", default=[49152, 151936])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    rows: list[dict[str, Any]] = []
    print(f"{mx.default_device()}, {platform.machine()}, mlx {version('mlx')}; host / total in us")
    for vocab in arguments.vocab:
        print(f"\nV = {vocab:<18}" + "".join(f"{f'B = {b}':>18}" for b in arguments.batch))
        for name, params in CASES.items():
            print(f"{name:<22}", end="")
            for batch in arguments.batch:
                row = measure(params, vocab, batch, arguments.rounds)
                rows.append({"case": name, "vocab": vocab, "batch": batch, **row})
                print(f"{row['host']:>8.0f} /{row['total']:>8.0f}", end="", flush=True)
            print()
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(program.run(main))
