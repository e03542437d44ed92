from __future__ import annotations

import pytest

from pipeline.errors import ContextTooLong, EngineFault, EngineStopped, QueueFull
from pipeline.request import TokenLogprobs
from server.api.service import Service
from tests.server.api.conftest import Client, events
from tests.server.api.fakes import TOKENIZER, FakeEngine, Script, ids, make_service, make_tokenizer


def test_document(client: Client) -> None:
    response = client.chat()
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    assert body["id"].startswith("chatcmpl-")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "hello world",
                "refusal": None,
                "annotations": [],
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    prompt, output = len(ids("<|user|>hi</s><|assistant|>")), len(ids("hello world")) + 1
    assert body["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_stream_order(client: Client) -> None:
    chunks = events(client.chat(stream=True))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all(set(delta) == {"content"} and delta["content"] for delta in deltas[1:-1])
    assert deltas[-1] == {}
    assert "".join(delta.get("content", "") for delta in deltas) == "hello world"
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)


def test_stream_usage_only_when_asked(client: Client) -> None:
    chunks = events(client.chat(stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == client.chat().json()["usage"]


def test_usage_tells_what_was_cached(engine: FakeEngine, client: Client) -> None:
    engine.script = Script(ids("hello world"), cached=7)
    usage = client.chat().json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 7}
    chunks = events(client.chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1]["usage"] == usage


def test_stream_equals_document(engine: FakeEngine, client: Client) -> None:
    engine.script = Script(ids("grüße, 你好 🙂 END of it"))
    for stop in ([], ["END"], ["好 "], ["e, 你"]):
        whole = client.chat(stop=stop).json()["choices"][0]
        chunks = events(client.chat(stop=stop, stream=True))
        parts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
        assert "".join(parts) == whole["message"]["content"]
        assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]


def test_length(engine: FakeEngine, client: Client) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        choice = client.chat(**{field: 2}).json()["choices"][0]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["content"] == "hello wo"
        assert engine.requests[-1].max_tokens == 2


def test_rest_of_context_by_default(engine: FakeEngine, client: Client) -> None:
    client.chat()
    assert engine.requests[0].max_tokens == 200 - len(engine.requests[0].prompt)


def test_stop_string_cancels_the_engine(engine: FakeEngine, client: Client) -> None:
    engine.script = Script(ids("one two three"), hang=True)
    body = client.chat(stop="two").json()
    assert body["choices"][0]["message"]["content"] == "one "
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == len(ids("one two"))
    assert engine.cancelled == [engine.requests[0].id]
    assert engine.running == 0


def test_min_tokens_hold_back_stop_strings(engine: FakeEngine, client: Client) -> None:
    engine.script = Script(ids("a.b.c.d"))
    body = client.chat(stop=".", min_tokens=4).json()
    assert body["choices"][0]["message"]["content"] == "a.b"
    assert engine.requests[0].params.min_tokens == 4


def test_end_tokens_are_no_text(engine: FakeEngine, client: Client) -> None:
    engine.script = Script([*ids("he"), TOKENIZER.eos_token_id, *ids("llo")])
    body = client.chat(ignore_eos=True).json()
    assert body["choices"][0]["message"]["content"] == "hello"
    assert engine.requests[0].params.end_tokens == ()


def test_messages_as_the_template_sees_them(engine: FakeEngine, client: Client) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": t} for t in "ab"]},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    client.chat(messages=messages, chat_template_kwargs={"shout": True})
    expected = (
        "<|system|>be brief</s><|user|>ann: ab</s><|assistant|>c</s><|user|>d</s>!<|assistant|>"
    )
    assert TOKENIZER.decode(engine.requests[0].prompt) == expected


def test_logprobs(engine: FakeEngine, client: Client) -> None:
    tokens = ids("é!")
    best = TokenLogprobs(-0.25, ((tokens[0], -0.25), (tokens[2], float("-inf"))))
    engine.script = Script(tokens, logprobs=best)
    content = client.chat(logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9], [0x21]]
    assert [entry["token"] for entry in content] == ["bytes:\\xc3", "bytes:\\xa9", "!"]
    assert {entry["logprob"] for entry in content} == {-0.25}
    assert content[0]["top_logprobs"][1] == {"token": "!", "logprob": -9999.0, "bytes": [0x21]}
    assert engine.requests[0].params.logprobs == 2

    chunks = events(client.chat(logprobs=True, top_logprobs=2, stream=True))
    shown = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [entry for each in shown if each for entry in each["content"]] == content


def test_logprobs_end_where_the_text_ends(engine: FakeEngine, client: Client) -> None:
    engine.script = Script(ids("ab--cd"), logprobs=TokenLogprobs(-1.0))
    content = client.chat(logprobs=True, stop="--").json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["a", "b"]


ENGINE_ERRORS = [
    (ContextTooLong(300, 200), 400, "invalid_request_error", "context_length_exceeded"),
    (QueueFull("the queue is full"), 503, "server_error", "overloaded"),
    (EngineStopped("the engine is stopping"), 503, "server_error", "not_ready"),
    (EngineFault("rank 2 is gone"), 500, "server_error", "internal_error"),
    (ZeroDivisionError("a bug"), 500, "server_error", "internal_error"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "status", "kind", "code"), ENGINE_ERRORS)
def test_error_before_the_first_token(
    engine: FakeEngine,
    client: Client,
    error: Exception,
    status: int,
    kind: str,
    code: str,
    stream: bool,
) -> None:
    engine.script = Script(error=error)
    response = client.chat(stream=stream)
    assert response.status_code == status
    found = response.json()["error"]
    assert (found["type"], found["code"], found["param"]) == (kind, code, None)
    assert ("retry-after" in response.headers) == (status == 503)
    if status == 500:
        assert response.headers["x-request-id"] in found["message"]
        assert str(error) not in found["message"]


@pytest.mark.parametrize("error", [EngineFault("rank 2 is gone"), EngineStopped("bye")])
def test_error_after_the_first_token(engine: FakeEngine, client: Client, error: Exception) -> None:
    engine.script = Script(ids("hello"), error=error)
    chunks = events(client.chat(stream=True))
    assert chunks[-1]["error"]["type"] == "server_error"
    assert all(c["choices"][0]["finish_reason"] is None for c in chunks[:-1])
    status = 500 if isinstance(error, EngineFault) else 503
    assert client.chat().status_code == status


def test_bug_after_the_first_token(engine: FakeEngine, client: Client) -> None:
    """The client is told, and the connection ends as a broken one."""
    engine.script = Script(ids("hello"), error=ZeroDivisionError("a bug"))
    text = client.chat(stream=True).text
    assert '"code":"internal_error"' in text.rstrip().split("\n")[-1]
    assert "[DONE]" not in text
    assert "a bug" not in text


def test_engine_that_ends_without_a_reason_is_a_fault(engine: FakeEngine, client: Client) -> None:
    engine.script = Script(ids("hello"), end=False)
    assert client.chat().json()["error"]["code"] == "internal_error"


def test_no_first_token_in_time(engine: FakeEngine) -> None:
    engine.script = Script(hang=True)
    client = Client(make_service(engine, first_token_timeout=0.05))
    for stream in (False, True):
        response = client.chat(stream=stream)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "overloaded"
        assert response.headers["retry-after"]
    assert len(engine.cancelled) == 2


def test_keep_alive_comments_while_waiting(engine: FakeEngine) -> None:
    engine.script = Script(hang=True)
    client = Client(make_service(engine, keep_alive_interval=0.02, first_token_timeout=0.2))
    response = client.chat(stream=True)
    assert response.status_code == 200
    assert ": keep-alive\n\n" in response.text
    assert events(response)[-1]["error"]["code"] == "overloaded"


def test_places_are_limited_and_given_back(engine: FakeEngine, service: Service) -> None:
    service.max_concurrent_requests = 1
    client = Client(service)
    with service.admitted(1):
        response = client.chat()
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "overloaded"
    for script in (Script(ids("a")), Script(error=EngineFault("x")), Script(ids("a"))):
        engine.script = script
        client.chat()
        client.chat(stream=True)
    assert service.running == 0


@pytest.mark.parametrize("reason", ["electing a leader", None])
def test_not_ready(service: Service, client: Client, reason: str | None) -> None:
    service.readiness = lambda: reason
    if reason is None:
        service.model = None
    response = client.chat()
    assert response.status_code == 503
    assert response.headers["retry-after"]
    error = response.json()["error"]
    assert error["code"] == "not_ready"
    assert (reason or "loading") in error["message"]


def test_seed(engine: FakeEngine, client: Client) -> None:
    for seed, expected in ((7, 7), (-1, 2**63 - 1), (-(2**63), 0), (2**63 - 1, 2**63 - 1)):
        client.chat(seed=seed)
        assert engine.requests[-1].params.seed == expected
    client.chat()
    client.chat()
    assert engine.requests[-1].params.seed != engine.requests[-2].params.seed


def test_sampling_fields_reach_the_engine(engine: FakeEngine, client: Client) -> None:
    client.chat(
        temperature=0,
        top_p=0.5,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=-1,
        frequency_penalty=2,
        logit_bias={"7": -100},
        stop_token_ids=[9, 9],
        min_tokens=3,
        user="somebody",
        n=1,
        tools=[],
        response_format={"type": "text"},
    )
    params = engine.requests[0].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0, 0.5, 0, 0.1)
    assert (params.repetition_penalty, params.presence_penalty) == (1.5, -1)
    assert (params.frequency_penalty, params.logit_bias) == (2, {7: -100})
    assert params.end_tokens == (TOKENIZER.eos_token_id, 9)
    assert (params.min_tokens, params.logprobs) == (3, -1)


def test_null_is_absent(engine: FakeEngine, client: Client) -> None:
    names = ("temperature", "top_p", "stop", "seed", "logit_bias", "stream", "tools", "logprobs")
    assert client.chat(**dict.fromkeys(names)).status_code == 200
    assert engine.requests[0].params.temperature == 1.0


def test_template_that_refuses(client: Client) -> None:
    response = client.chat("refuse me")
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "messages"
    assert "no such talk" in error["message"]


def test_model_without_template(engine: FakeEngine) -> None:
    client = Client(make_service(engine, tokenizer=make_tokenizer(chat_template=None)))
    response = client.chat()
    assert response.status_code == 400
    assert "/v1/completions" in response.json()["error"]["message"]
