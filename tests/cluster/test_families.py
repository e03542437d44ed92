"""Six architecture families over real ranks: windows, experts and recurrent state, alone and in batches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import Start
from tests.cluster.harness import Spec, folder_model, tokens_of, wait_until
from tests.cluster.reference import Reference
from tests.cluster.tiny import FAMILIES, make_folder, word

NEW_TOKENS = 24
# Shorter and longer than the sliding windows (4) and than a prefill chunk (32).
LENGTHS = (1, 3, 5, 17, 32, 33, 34, 100)


def sharding(counts: tuple[int, ...]) -> dict[str, Any]:
    """models.yaml's ranges for consecutive layers."""
    ends = list(accumulate(counts))
    return {
        f"node_{rank}": {"layers": [end - count, end - 1]}
        for rank, (end, count) in enumerate(zip(ends, counts, strict=True))
    }


@pytest.mark.parametrize("architecture", FAMILIES)
def test_greedy_output_is_mlx_lms(start: Start, tmp_path: Path, architecture: str) -> None:
    split = FAMILIES[architecture]
    ranks, more = (
        (split, {}) if isinstance(split, int) else (len(split), {"sharding": sharding(split)})
    )
    folder = make_folder(tmp_path / architecture, architecture)
    prompts = [[(7 * n * n + 3 * n + length) % 96 for n in range(length)] for length in LENGTHS]
    expected = [
        [word(token) for token in made.tokens]
        for made in Reference(folder).generate(prompts, NEW_TOKENS)
    ]
    spec = Spec(
        ranks=ranks,
        models=folder_model(folder, **more),
        settings=("scheduler.prefill_chunk_tokens=32",),
    )
    cluster = start(spec).wait_ready()

    def generate(ids: list[int]) -> list[str]:
        return tokens_of(cluster.complete(ids, NEW_TOKENS, logprobs=0))

    assert [generate(ids) for ids in prompts] == expected, "one by one"
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(generate, prompts)) == expected, "together"
    wait_until(lambda: cluster.sequences() == [0] * ranks, "every stage has released all sequences")
    cluster.stop()
