"""Run by test_ring.py on two ranks: tensors used in every order, or not at all, arrive as they were sent."""

from __future__ import annotations

import itertools

import mlx.core as mx

from pipeline.ring import Ring, evaluate
from pipeline.split import TensorSpec

COUNT = 4
SHAPE = (3, 5)


def main() -> None:
    ring = Ring()
    specs = [TensorSpec(f".t{n}", SHAPE, "float32") for n in range(COUNT)]
    for used in uses():
        if ring.rank == 0:
            arrays = [mx.full(SHAPE, float(n)) for n in range(COUNT)]
            evaluate(arrays)
            ring.send(arrays, 1)
            ring.flush()
            continue
        expected = ring.expect(specs, 0)
        total = mx.zeros(SHAPE)
        for n in used:
            total = total + expected[n] * 10.0**n
        ring.post(expected)
        evaluate(total, expected)
        right = sum(n * 10.0**n for n in used)
        assert mx.all(total == right).item(), f"used {used}: {total[0, 0].item()} for {right}"
    print(f"rank {ring.rank} is done", flush=True)


def uses() -> list[tuple[int, ...]]:
    return [
        used for size in range(COUNT + 1) for used in itertools.permutations(range(COUNT), size)
    ]


if __name__ == "__main__":
    main()
