"""What mlx-lm itself generates, in one process without any of this project's engine.

In a process of its own, which has the same BLAS as the ranks: `python -m tests.cluster.reference MODEL`
reads a JSON list of {prompt: [ids], max_tokens} from stdin and writes one of {tokens, logprobs}.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.harness import ROOT, environment

DEADLINE = 300.0  # seconds


@dataclass(frozen=True)
class Generated:
    """Greedy tokens and the natural logs of their probabilities."""

    tokens: list[int]
    logprobs: list[float]


@dataclass
class Reference:
    """Greedy generation with one model folder; remembers what it has made."""

    folder: Path
    _known: dict[tuple[tuple[int, ...], int], Generated] = field(default_factory=dict)

    def generate(
        self, prompts: Sequence[Sequence[int]], max_tokens: int | Sequence[int]
    ) -> list[Generated]:
        """The first `max_tokens` tokens after each prompt; end tokens end nothing."""
        counts = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else max_tokens
        keys = [(tuple(ids), count) for ids, count in zip(prompts, counts, strict=True)]
        missing = [key for key in keys if key not in self._known]
        if missing:
            jobs = [{"prompt": prompt, "max_tokens": count} for prompt, count in missing]
            self._known |= zip(missing, self._run(jobs), strict=True)
        return [self._known[key] for key in keys]

    def _run(self, jobs: list[dict[str, Any]]) -> list[Generated]:
        done = subprocess.run(
            [sys.executable, "-m", "tests.cluster.reference", str(self.folder)],
            input=json.dumps(jobs),
            stdout=subprocess.PIPE,
            env=environment({}),
            cwd=ROOT,
            text=True,
            timeout=DEADLINE,
            check=True,
        )
        return [Generated(**each) for each in json.loads(done.stdout)]


def main() -> None:
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(sys.argv[1]))
    results = []
    for job in json.load(sys.stdin):
        prompt = mx.array(job["prompt"])
        tokens, logprobs = [], []
        for token, row in generate_step(prompt, model, max_tokens=job["max_tokens"]):
            tokens.append(int(token))
            logprobs.append(float(row[int(token)]))
        results.append({"tokens": tokens, "logprobs": logprobs})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
