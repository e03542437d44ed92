"""Several choices of one prompt, the best of them, the prompt in front, and filling in the middle."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken

from pipeline.request import TokenLogprobs
from tests.server.api.conftest import Client, events
from tests.server.api.fakes import FakeEngine, Script, ids, make_service, make_tokenizer


def by_index(chunks: list[Any], text: Any) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + text(choice)
    return texts


def test_chat_choices_share_prompt_and_usage(client: Client, engine: FakeEngine) -> None:
    body = client.chat(n=3).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert engine.most_running == 3
    prompts = {request.prompt for request in engine.requests}
    assert len(prompts) == 1
    assert len({request.params.seed for request in engine.requests}) == 3
    assert body["usage"]["prompt_tokens"] == len(prompts.pop())
    assert body["usage"]["completion_tokens"] == 3 * (len(ids("hello world")) + 1)


def test_streamed_chat_choices_each_have_a_role_and_an_end(client: Client) -> None:
    chunks = events(client.chat(n=2, stream=True, stream_options={"include_usage": True}))
    roles = [c["choices"][0]["delta"].get("role") for c in chunks[:-1]]
    assert roles.count("assistant") == 2
    ends = [c["choices"][0]["finish_reason"] for c in chunks[:-1]]
    assert ends.count("stop") == 2
    texts = by_index(chunks, lambda choice: choice["delta"].get("content", ""))
    assert texts == {0: "hello world", 1: "hello world"}
    assert chunks[-1]["usage"] == client.chat(n=2).json()["usage"]


def test_seeds_of_choices_follow_from_the_request(client: Client, engine: FakeEngine) -> None:
    client.chat(n=3, seed=7)
    client.complete(n=3, seed=7)
    client.chat(seed=7)
    seeds = [request.params.seed for request in engine.requests]
    assert seeds[:3] == seeds[3:6]
    assert len(set(seeds[:3])) == 3
    assert seeds[0] == seeds[6] == 7


def test_choices_of_several_prompts(client: Client, engine: FakeEngine) -> None:
    engine.scripts = {1: Script(ids("x")), 2: Script(ids("xx"), cached=1)}
    for stream in (False, True):
        response = client.complete(["a", "bb"], n=2, stream=stream)
        found = events(response) if stream else [response.json()]
        texts = by_index(found, lambda choice: choice["text"])
        assert texts == {0: "x", 1: "x", 2: "xx", 3: "xx"}
    usage = client.complete(["a", "bb"], n=2).json()["usage"]
    assert usage["prompt_tokens"] == 3
    assert usage["prompt_tokens_details"] == {"cached_tokens": 1}


class Graded(FakeEngine):
    """The log probability of every token of the nth request is the nth grade."""

    def __init__(self, *grades: float) -> None:
        super().__init__()
        self._scripts = [
            Script(ids("abc"[n % 3] * (n + 1)), logprobs=TokenLogprobs(grade))
            for n, grade in enumerate(grades)
        ]

    def _play(self, request: Any) -> Any:
        self.script = self._scripts[int(request.id.rpartition("-")[2])]
        return super()._play(request)


@pytest.mark.parametrize("logprobs", [None, 0])
def test_the_best_have_the_highest_mean_log_probability(logprobs: int | None) -> None:
    # By the sum, the first one would be the best: it is the shortest.
    engine = Graded(-2.0, -1.5, -3.0, -1.0)
    body = Client(make_service(engine)).complete(best_of=4, n=2, logprobs=logprobs).json()
    assert [choice["text"] for choice in body["choices"]] == ["aaaa", "bb"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert [choice["logprobs"] is None for choice in body["choices"]] == [logprobs is None] * 2
    assert len(engine.requests) == 4
    assert body["usage"]["completion_tokens"] == sum((2, 3, 4, 5)), "of all candidates"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["hell", ids("hell")])
def test_echo(client: Client, prompt: Any, stream: bool) -> None:
    response = client.complete([prompt, prompt], n=2, echo=True, stream=stream)
    found = events(response) if stream else [response.json()]
    texts = by_index(found, lambda choice: choice["text"])
    assert texts == dict.fromkeys(range(4), "hellhello world")


def test_infilling_marks_the_parts() -> None:
    tokenizer = make_tokenizer()
    marks = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in marks])
    engine = FakeEngine(Script(ids("x")))
    client = Client(make_service(engine, tokenizer=tokenizer))
    assert client.complete("ab", suffix="cd").status_code == 200
    shown = tokenizer.decode(list(engine.requests[0].prompt))
    assert shown == "<|fim_prefix|>ab<|fim_suffix|>cd<|fim_middle|>"


def test_infilling_with_the_suffix_first() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in ("[PREFIX]", "[SUFFIX]")])
    engine = FakeEngine(Script(ids("x")))
    client = Client(make_service(engine, tokenizer=tokenizer))
    assert client.complete("ab", suffix="cd").status_code == 200
    assert tokenizer.decode(list(engine.requests[0].prompt)) == "[SUFFIX]cd[PREFIX]ab"


def test_without_such_tokens_a_suffix_is_refused(client: Client, engine: FakeEngine) -> None:
    error = client.complete("ab", suffix="cd").json()["error"]
    assert (error["param"], error["code"]) == ("suffix", "unsupported_parameter")
    assert engine.requests == []
