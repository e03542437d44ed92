"""The official Python client: sync, async, streams, tools, structured output, responses, errors, retries."""

import asyncio
import sys

import openai
from pydantic import BaseModel

URL, MODEL = sys.argv[1:]
OPTIONS = {"base_url": URL, "api_key": "none", "timeout": 600.0, "max_retries": 2}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class City(BaseModel):
    name: str
    country: str


def chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, n=2, logprobs=True)
    assert all("Paris" in choice.message.content for choice in answer.choices)
    assert answer.choices[0].logprobs.content[0].bytes
    stream = client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    with client.chat.completions.stream(model=MODEL, messages=QUESTION) as events:
        assert "Paris" in events.get_final_completion().choices[0].message.content


def structured(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, response_format=City, max_completion_tokens=200
    )
    assert isinstance(answer.choices[0].message.parsed, City)
    parameters = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99}},
        "required": ["n"],
    }
    function = {"name": "count", "parameters": {**parameters, "additionalProperties": False}}
    called = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        tools=[{"type": "function", "function": {**function, "strict": True}}],
        tool_choice={"type": "function", "function": {"name": "count"}},
        max_completion_tokens=100,
    )
    [call] = called.choices[0].message.tool_calls
    assert call.function.name == "count"


def responses(client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="What is the capital of France?")
    assert "Paris" in first.output_text
    second = client.responses.create(
        model=MODEL, input="And its river?", previous_response_id=first.id, max_output_tokens=30
    )
    assert client.responses.retrieve(second.id).output_text == second.output_text
    client.responses.delete(second.id)
    with client.responses.stream(model=MODEL, input="What is the capital of France?") as stream:
        kinds = [event.type for event in stream]
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert stream.get_final_response().output_text == first.output_text


def errors(client: openai.OpenAI) -> None:
    for kind, fields in (
        (openai.BadRequestError, {"temperature": 9}),
        (openai.NotFoundError, {"model": "gpt-9"}),
        (openai.InternalServerError, {"model": "other"}),  # configured, not loaded
    ):
        try:
            client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, **fields})
        except kind as error:
            assert error.code or error.param
        else:
            raise AssertionError(f"no {kind}")


async def many() -> None:
    async with openai.AsyncOpenAI(**OPTIONS) as client:
        asked = (
            client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=4)
            for _ in range(6)
        )
        for answer in await asyncio.gather(*asked):
            assert "Paris" in answer.choices[0].text
        stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
        assert "Paris" in "".join([c.choices[0].delta.content or "" async for c in stream])


with openai.OpenAI(**OPTIONS) as sdk:
    assert MODEL in [model.id for model in sdk.models.list()]
    for part in (chat, structured, responses, errors):
        part(sdk)
asyncio.run(many())
print("ok")
