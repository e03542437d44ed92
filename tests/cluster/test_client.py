"""The official client against a real model over three ranks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest

from tests.cluster.harness import ANSWER_DEADLINE, MODEL, Cluster

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ASKED = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 40}


def options(cluster: Cluster) -> dict[str, object]:
    return {
        "base_url": f"{cluster.url}/v1",
        "api_key": "none",
        "max_retries": 0,
        "timeout": ANSWER_DEADLINE,
    }


@pytest.fixture
def sdk(three: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(**options(three)) as client:
        yield client


def test_paris(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(**ASKED)
    [choice] = answer.choices
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.model == MODEL
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_gives_the_same_text(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(**ASKED)
    stream = sdk.chat.completions.create(
        **ASKED, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert text == whole.choices[0].message.content
    assert sum(1 for chunk in chunks if chunk.choices) > 4, "it comes in pieces"
    assert chunks[-1].usage == whole.usage


def test_the_async_client(three: Cluster) -> None:
    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(**options(three)) as client:
            answer = await client.chat.completions.create(**ASKED)
            stream = await client.chat.completions.create(**ASKED, stream=True)
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return answer.choices[0].message.content, "".join(parts)

    whole, streamed = asyncio.run(ask())
    assert "Paris" in whole
    assert streamed == whole


def test_text_completion(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0
    )
    assert "Paris" in answer.choices[0].text


def test_models(sdk: openai.OpenAI) -> None:
    assert MODEL in [model.id for model in sdk.models.list()]
    assert sdk.models.retrieve(MODEL).id == MODEL


def test_an_unknown_model(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.chat.completions.create(**{**ASKED, "model": "gpt-5"})
    assert caught.value.code == "model_not_found"
    assert "gpt-5" in caught.value.message


def test_a_context_that_is_too_long(sdk: openai.OpenAI) -> None:
    limit = sdk.models.retrieve(MODEL).max_model_len
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.completions.create(model=MODEL, prompt=[5] * limit, max_tokens=1)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(**{**ASKED, "max_tokens": limit})
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_a_bad_field(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(**{**ASKED, "temperature": -1})
    assert caught.value.param == "temperature"
