"""What constraints cost: decode steps of one stage with and without constrained rows, taken in turns.

python scripts/bench_constraints.py --batch 8 --constrained 4
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from benchlib.report import add_output_arguments, check_output, write_json
from config import program
from pipeline.checkpoint import Checkpoint
from pipeline.demo_model import ensure_demo_model
from pipeline.frames import Admission, Decode, Prefill, Step
from pipeline.request import Constraint, SamplingParams
from pipeline.ring import Ring
from pipeline.sampler import Sampler
from pipeline.sampling.grammar import Grammars, read_vocabulary
from pipeline.worker import Worker

STEP_TIMEOUT = 600.0  # seconds
WARM_UP = 10  # steps
PROMPT = tuple(range(100, 140))
ITEM = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
ENDLESS = json.dumps({"type": "array", "items": ITEM, "minItems": 10_000})


class Batch:
    """Sequences that decode together, some of them constrained."""

    def __init__(self, worker: Worker, group: int, size: int, constrained: int, end: int) -> None:
        self._worker, self._group = worker, group
        self._sequences = tuple(range(group * size, (group + 1) * size))
        self._tokens = (PROMPT[-1],) * size
        self.seconds: list[float] = []
        held = Constraint(kind="json_schema", text=ENDLESS, ends=(end,))
        for place, sequence in enumerate(self._sequences):
            params = SamplingParams(
                temperature=0.8,
                top_p=0.95,
                seed=place,
                constraint=held if place < constrained else None,
            )
            admitted = (Admission(sequence, params),)
            worker.run(Step(sequence, admitted=admitted, work=Prefill((sequence,), (PROMPT,))))

    def step(self, number: int) -> None:
        started = time.perf_counter()
        work = Decode(self._group, self._sequences, self._tokens)
        result = self._worker.run(Step(number, work=work))
        self.seconds.append(time.perf_counter() - started)
        assert result is not None
        assert not result.broken
        self._tokens = result.tokens


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="an MLX model folder; left out: the demo model")
    parser.add_argument("--batch", type=int, default=8, help="sequences that decode together")
    parser.add_argument("--constrained", type=int, default=4, help="how many follow a schema")
    parser.add_argument("--steps", type=int, default=100, help="of each batch")
    add_output_arguments(parser)
    options = parser.parse_args()
    check_output(parser, options)
    folder = options.model or ensure_demo_model()
    checkpoint = Checkpoint.open(folder)
    stage = checkpoint.load_stage(0, checkpoint.blueprint().num_layers, lambda *_: None)
    size = checkpoint.vocab_size
    grammars = Grammars(lambda: read_vocabulary(folder, size, False))
    sampler = Sampler(size, grammars)
    worker = Worker(stage, checkpoint.blueprint().passes, Ring(), None, sampler, STEP_TIMEOUT)
    end = grammars.vocabulary.eos_token
    batches = {
        "free": Batch(worker, 0, options.batch, 0, end),
        "constrained": Batch(worker, 1, options.batch, options.constrained, end),
    }
    for number in range(WARM_UP + options.steps):
        for batch in batches.values():
            batch.step(10_000 + number)
    medians = {name: 1e3 * statistics.median(b.seconds[WARM_UP:]) for name, b in batches.items()}
    more = medians["constrained"] / medians["free"] - 1
    for name, median in medians.items():
        print(f"{name:12} {median:8.2f} ms per step of {options.batch} sequences, median")
    print(f"{options.constrained} constrained sequences cost {more:.1%}")
    write_json(options, median_ms=medians)


if __name__ == "__main__":
    sys.exit(program.run(main))
