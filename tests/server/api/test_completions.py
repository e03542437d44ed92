from __future__ import annotations

from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from pipeline.errors import QueueFull
from pipeline.request import TokenLogprobs
from tests.server.api.conftest import Client, events
from tests.server.api.fakes import FakeEngine, Script, ids, make_service
from tests.server.api.test_text import SENTENCEPIECE


def test_document(client: Client, engine: FakeEngine) -> None:
    body = client.complete("say it").json()
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["choices"] == [
        {"index": 0, "text": "hello world", "logprobs": None, "finish_reason": "stop"}
    ]
    assert body["usage"]["prompt_tokens"] == len(ids("say it"))
    assert engine.requests[0].max_tokens == 16


def test_leading_space_is_kept(client: Client, engine: FakeEngine) -> None:
    engine.script = Script(ids(" world"))
    assert client.complete("hello").json()["choices"][0]["text"] == " world"


def test_leading_space_that_the_tokenizer_strips(engine: FakeEngine) -> None:
    client = Client(make_service(engine, tokenizer=TokenizerWrapper(SENTENCEPIECE)))
    engine.script = Script(SENTENCEPIECE.encode("b"))
    assert client.complete("a").json()["choices"][0]["text"] == " b"


PROMPTS = [
    ("abc", [ids("abc")]),
    (["a", "bc"], [ids("a"), ids("bc")]),
    (ids("abc"), [ids("abc")]),
    ([ids("a"), ids("bc")], [ids("a"), ids("bc")]),
]


@pytest.mark.parametrize(("prompt", "expected"), PROMPTS)
def test_forms_of_a_prompt(
    client: Client, engine: FakeEngine, prompt: Any, expected: list[list[int]]
) -> None:
    body = client.complete(prompt).json()
    assert [list(request.prompt) for request in engine.requests] == expected
    assert [choice["index"] for choice in body["choices"]] == list(range(len(expected)))
    assert body["usage"]["prompt_tokens"] == sum(map(len, expected))


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_run_together_and_keep_their_index(
    client: Client, engine: FakeEngine, stream: bool
) -> None:
    engine.scripts = {n: Script(ids("x" * n)) for n in (1, 2, 3)}
    response = client.complete(["aaa", "a", "aa"], stream=stream)
    documents = events(response) if stream else [response.json()]
    texts = {0: "", 1: "", 2: ""}
    for document in documents:
        for choice in document["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == {0: "xxx", 1: "x", 2: "xx"}
    assert engine.most_running == 3
    assert len({request.id for request in engine.requests}) == 3
    assert len({request.params.seed for request in engine.requests}) == 3


def test_stream_order(client: Client) -> None:
    chunks = events(client.complete(stream=True, stream_options={"include_usage": True}))
    assert len({chunk["id"] for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert choices[-1] == {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}
    assert all(choice["finish_reason"] is None and choice["text"] for choice in choices[:-1])
    assert "".join(choice["text"] for choice in choices) == "hello world"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == client.complete().json()["usage"]


def test_usage_tells_what_was_cached_of_all_prompts(client: Client, engine: FakeEngine) -> None:
    engine.scripts = {1: Script(ids("hello"), cached=3), 2: Script(ids("you"), cached=4)}
    body = {"prompt": [[5], [6, 7]], "stream_options": {"include_usage": True}}
    chunks = events(client.complete(stream=True, **body))
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 7}


def test_one_failure_fails_all(client: Client, engine: FakeEngine) -> None:
    engine.scripts = {1: Script(hang=True), 2: Script(error=QueueFull("the queue is full"))}
    response = client.complete(["a", "bb"])
    assert response.status_code == 503
    assert len(engine.ended) == 2
    assert engine.running == 0


def test_logprobs(client: Client, engine: FakeEngine) -> None:
    a, b = ids("ab")
    engine.script = Script(ids("ab"), logprobs=TokenLogprobs(-3.0, ((b, -0.5), (a, -1.0))))
    logprobs = client.complete(logprobs=2).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "b"]
    assert logprobs["token_logprobs"] == [-3.0, -3.0]
    assert logprobs["text_offset"] == [0, 1]
    assert logprobs["top_logprobs"] == [{"a": -3.0, "b": -0.5}, {"a": -1.0, "b": -3.0}]
    assert engine.requests[0].params.logprobs == 2

    chunks = events(client.complete(logprobs=2, stream=True))
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks[:-1]]
    assert [token for part in parts for token in part["tokens"]] == ["a", "b"]
    assert [offset for part in parts for offset in part["text_offset"]] == [0, 1]

    assert client.complete(logprobs=0).json()["choices"][0]["logprobs"]["top_logprobs"] is None
