"""Prompts that begin alike, over real ranks: every stage has the prefix, and the tokens stay the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.harness import Cluster
from tests.cluster.prompts import prompt

NEW_TOKENS = 12


def ask(cluster: Cluster, ids: Sequence[int]) -> tuple[str, int]:
    """Text, and how many tokens of the prompt were not prefilled."""
    answer = cluster.http.post("/v1/completions", json=cluster.body(ids, NEW_TOKENS)).json()
    return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("name", ["one", "two", "three"])
def test_a_prefix_is_prefilled_once(
    shared: Callable[[str], Cluster], demo_model: Path, name: str
) -> None:
    cluster = shared(name)
    story = prompt(demo_model, 310, seed=77)
    text, _ = ask(cluster, story)
    assert ask(cluster, story) == (text, 309)
    branch = [*story[:200], *prompt(demo_model, 30, seed=78)]
    branched, cached = ask(cluster, branch)
    assert cached in (200, 201)  # the two may begin with the same token
    twin = prompt(demo_model, 290, seed=79)
    with ThreadPoolExecutor(3) as pool:
        twins = list(pool.map(lambda _: ask(cluster, twin), range(3)))
    assert len({made for made, _ in twins}) == 1
    assert sorted(spared for _, spared in twins)[1:] == [289, 289]
    assert ask(cluster, branch) == (branched, 229)
