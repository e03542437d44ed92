"""However often and wherever a response is cut, its client gets the bytes of one that was not."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.frontdoor.exchange import END, Diverged, Exchange
from server.replay.records import Context, Kind, Record, Start
from tests.server.replay.engine import PureEngine, ask, make_app

CONTEXT = Context(1_700_000_000, "0123456789abcdef" * 2)
USER = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}

ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": USER}),
    "chat stream": (CHAT, {"messages": USER, **WITH_USAGE}),
    "chat choices": (CHAT, {"messages": USER, "n": 3, **WITH_USAGE}),
    "chat choices, whole": (CHAT, {"messages": USER, "n": 3, "logprobs": True, "top_logprobs": 2}),
    "chat stop": (CHAT, {"messages": USER, "stop": ["lo", "wor"], "seed": 5, **WITH_USAGE}),
    "chat logprobs": (CHAT, {"messages": USER, "logprobs": True, **WITH_USAGE}),
    "prompts": (TEXT, {"prompt": ["a", "b", "cd"], "n": 2, "logprobs": 1, **WITH_USAGE}),
    "prompts, whole": (TEXT, {"prompt": ["a", "b"], "best_of": 3, "n": 2}),
    "echo": (TEXT, {"prompt": "hello", "echo": True, "seed": 9, **WITH_USAGE}),
    "responses": ("/v1/responses", {"input": "hi", "stream": True}),
    "messages": ("/v1/messages", {"messages": USER, "stream": True}),
}


def body_of(name: str, tokens: int) -> tuple[str, dict[str, Any]]:
    path, fields = ASKED[name]
    limit = "max_output_tokens" if path.endswith("responses") else "max_tokens"
    return path, {"model": "tiny", limit: tokens, **fields}


class Client:
    """What a client gets, over several attempts."""

    def __init__(self, context: Context = CONTEXT) -> None:
        self.exchange = Exchange(context)
        self.start: Start | None = None
        self.body = b""
        self.ended = False

    def take(self, records: list[Record]) -> None:
        self.exchange.begin()
        for record in records:
            for out in self.exchange.take(record):
                if isinstance(out, Start):
                    assert self.start is None
                    self.start = out
                elif out == END:
                    self.ended = True
                else:
                    self.body += out


def cut_and_resumed(path: str, body: Any, cuts: list[int], seed: int) -> Client:
    """Attempts that end after so many records each, and one to the end; each with a timing of its own."""
    client, jitter = Client(), random.Random(seed)
    for cut in [*cuts, None]:
        engine = PureEngine(random.Random(jitter.random()), cached=1)
        records = ask(make_app(engine), path, body, CONTEXT, bytes(client.exchange.events))
        assert records[-1].kind is Kind.END
        client.take(records if cut is None else records[: min(cut, len(records) - 1)])
    assert client.ended
    return client


def uninterrupted(path: str, body: Any, events: bytes = b"", seed: int = 0) -> Client:
    client = Client()
    engine = PureEngine(random.Random(seed), cached=1)
    client.take(ask(make_app(engine), path, body, CONTEXT, events))
    assert client.ended
    return client


@pytest.mark.parametrize("name", ASKED)
@settings(max_examples=12, deadline=None)
@given(
    tokens=st.integers(1, 14),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    seed=st.integers(0, 1 << 20),
)
def test_cuts_change_nothing(name: str, tokens: int, cuts: list[int], seed: int) -> None:
    path, body = body_of(name, tokens)
    client = cut_and_resumed(path, body, cuts, seed)
    # The order in which the engine gave the tokens of several choices is that of the journal.
    again = uninterrupted(path, body, bytes(client.exchange.events), seed=seed + 1)
    assert client.body == again.body
    assert client.start == again.start
    once = uninterrupted(path, body)
    assert said(once.body) == said(client.body)
    if not body.get("stream"):
        assert client.body == once.body


def said(body: bytes) -> dict[Any, Any]:
    """What matters of an answer whatever the order of its choices: text by choice, ends, and usage."""
    if not body.startswith((b"data:", b"event:")):
        return {"whole": json.loads(body)}
    found: dict[Any, Any] = defaultdict(str)
    for line in body.decode().split("\n"):
        if not line.startswith("data: {"):
            continue
        event = json.loads(line.removeprefix("data: "))
        for choice in event.get("choices", ()):
            delta = choice.get("delta", choice)
            found[choice["index"], "text"] += delta.get("content") or delta.get("text") or ""
            found[choice["index"], "finish"] += choice["finish_reason"] or ""
        if event.get("usage"):
            found["usage"] = event["usage"]
        found[event.get("type")] += json.dumps(event) if "type" in event else ""
    return dict(found)


def test_a_finished_sequence_is_not_asked_of_the_engine_again() -> None:
    path, body = body_of("prompts", 6)
    whole = uninterrupted(path, body)
    engine = PureEngine()
    records = ask(make_app(engine), path, body, CONTEXT, bytes(whole.exchange.events))
    assert engine.requests == []
    assert b"".join(r.payload for r in records if r.kind is Kind.BODY) == whole.body
    assert not [r for r in records if r.kind is Kind.EVENT]


def test_usage_is_as_first_reported() -> None:
    path, body = body_of("chat", 8)
    client = Client()
    client.take(ask(make_app(PureEngine(cached=1)), path, body, CONTEXT)[:4])
    events = bytes(client.exchange.events)
    client.take(ask(make_app(PureEngine(cached=4)), path, body, CONTEXT, events))
    assert client.body == uninterrupted(path, body).body
    assert json.loads(client.body)["usage"]["prompt_tokens_details"]["cached_tokens"] == 1


def test_another_response_is_not_mixed_into_the_first() -> None:
    path, body = body_of("chat stream", 10)
    records = ask(make_app(PureEngine()), path, body, CONTEXT)
    client = Client()
    client.take(records[:12])
    assert client.exchange.delivered
    other = Context(1_700_000_001, CONTEXT.nonce)
    with pytest.raises(Diverged):
        client.take(ask(make_app(PureEngine()), path, body, other, bytes(client.exchange.events)))
