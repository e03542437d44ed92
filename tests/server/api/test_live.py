"""Over real sockets: the official client, and what happens when a client goes away."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import openai
import pytest
import uvicorn

from pipeline.errors import EngineFault, QueueFull
from server.api.app import create_app
from server.api.service import Service
from tests.server.api.fakes import FakeEngine, Script, ids

DEADLINE_S = 20.0
USER = [{"role": "user", "content": "hi"}]


@contextmanager
def serving(service: Service) -> Iterator[tuple[str, int]]:
    """The application under uvicorn in a thread, on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(service), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        listener.close()


@pytest.fixture
def address(service: Service) -> Iterator[tuple[str, int]]:
    with serving(service) as found:
        yield found


@pytest.fixture
def sdk(address: tuple[str, int]) -> Iterator[openai.OpenAI]:
    url = f"http://{address[0]}:{address[1]}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=DEADLINE_S) as client:
        yield client


def test_chat(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="tiny", messages=USER, logprobs=True)
    assert answer.choices[0].message.content == "hello world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id.startswith("req_")


def test_chat_stream(sdk: openai.OpenAI) -> None:
    options = {"include_usage": True}
    with sdk.chat.completions.create(
        model="tiny", messages=USER, stream=True, stream_options=options
    ) as stream:
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "hello world"
    assert chunks[-1].usage.completion_tokens == len(ids("hello world")) + 1


def test_completions(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model="tiny", prompt=["a", "b"], logprobs=1)
    assert [choice.text for choice in answer.choices] == ["hello world"] * 2
    stream = sdk.completions.create(model="tiny", prompt="a", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "hello world"


def test_responses(sdk: openai.OpenAI) -> None:
    first = sdk.responses.create(model="tiny", input="hi")
    assert first.output_text == "hello world"
    second = sdk.responses.create(model="tiny", input="more", previous_response_id=first.id)
    assert sdk.responses.retrieve(second.id).output_text == "hello world"
    with sdk.responses.stream(model="tiny", input="hi") as stream:
        kinds = [event.type for event in stream]
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        assert stream.get_final_response().output_text == "hello world"
    sdk.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(second.id)


def test_a_client_tries_again_when_it_is_told_to(
    address: tuple[str, int], service: Service, engine: FakeEngine
) -> None:
    url = f"http://{address[0]}:{address[1]}/v1"
    engine.script = Script(error=QueueFull("full"))

    def answer_later() -> None:
        wait_until(lambda: len(engine.ended) >= 1)
        engine.script = Script(ids("hello"))

    helper = threading.Thread(target=answer_later)
    helper.start()
    with openai.OpenAI(base_url=url, api_key="none", max_retries=3, timeout=DEADLINE_S) as client:
        answer = client.chat.completions.create(model="tiny", messages=USER)
    helper.join(DEADLINE_S)
    assert answer.choices[0].message.content == "hello"
    assert len(engine.requests) >= 2


def test_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["tiny"]
    assert sdk.models.retrieve("org/tiny").id == "tiny"


def test_errors_have_their_types(sdk: openai.OpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.chat.completions.create(model="gpt-9", messages=USER)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.chat.completions.create(model="tiny", messages=USER, temperature=3)
    assert bad.value.param == "temperature"
    engine.script = Script(error=EngineFault("gone"))
    with pytest.raises(openai.InternalServerError) as fault:
        sdk.chat.completions.create(model="tiny", messages=USER)
    assert fault.value.request_id in fault.value.body["message"]


def test_fault_in_a_stream_is_an_error_of_the_client(
    sdk: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.script = Script(ids("hello"), error=EngineFault("gone"))
    stream = sdk.chat.completions.create(model="tiny", messages=USER, stream=True)
    with pytest.raises(openai.APIError, match="server had an error"):
        for _ in stream:
            pass


def test_many_at_once(address: tuple[str, int], engine: FakeEngine) -> None:
    async def ask_all() -> list[str]:
        url = f"http://{address[0]}:{address[1]}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

            async def ask(stream: bool) -> str:
                if not stream:
                    got = await client.chat.completions.create(model="tiny", messages=USER)
                    return got.choices[0].message.content
                chunks = await client.chat.completions.create(
                    model="tiny", messages=USER, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            work = asyncio.gather(*(ask(bool(number % 2)) for number in range(20)))
            return await asyncio.wait_for(work, DEADLINE_S)

    assert asyncio.run(ask_all()) == ["hello world"] * 20
    assert engine.running == 0


def wait_until(condition: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(int(DEADLINE_S / 0.01)):
        if condition():
            return
        waited.wait(0.01)
    pytest.fail("the condition did not come true")


@pytest.mark.parametrize("tokens", [0, 3], ids=["before the first token", "after some"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_a_closed_connection_cancels(
    address: tuple[str, int],
    service: Service,
    engine: FakeEngine,
    path: str,
    stream: bool,
    tokens: int,
) -> None:
    engine.script = Script(ids("abc")[:tokens], hang=True)
    service.keep_alive_interval = (
        10 * DEADLINE_S
    )  # so that the stream does not begin without a token
    asked = {"messages": USER} if path.startswith("chat") else {"prompt": ["a", "b"]}
    body = json.dumps({"model": "tiny", "stream": stream, **asked}).encode()
    head = f"POST /v1/{path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    sequences = 1 if path.startswith("chat") else 2
    with socket.create_connection(address, timeout=DEADLINE_S) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: engine.running == sequences)
        if stream and tokens:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    wait_until(lambda: len(engine.cancelled) == sequences)
    wait_until(lambda: service.running == 0)
    assert engine.running == 0


def test_a_body_declared_too_large_is_not_waited_for(address: tuple[str, int]) -> None:
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n\r\n"
    with socket.create_connection(address, timeout=DEADLINE_S) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("trickle", [False, True])
def test_a_body_that_does_not_come_in_time_is_not_waited_for(
    address: tuple[str, int], service: Service, trickle: bool
) -> None:
    service.bodies.patience_s = 0.2
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n{"
    with socket.create_connection(address, timeout=DEADLINE_S) as connection:
        connection.sendall(head.encode())
        if trickle:
            connection.settimeout(0.02)
            for _ in range(int(DEADLINE_S / 0.02)):
                with suppress(TimeoutError):
                    answer = connection.recv(1000)
                    break
                # Closed on what it did not read; its answer is still here.
                with suppress(ConnectionResetError, BrokenPipeError):
                    connection.sendall(b" ")
            connection.settimeout(DEADLINE_S)
        else:
            answer = connection.recv(1000)
        with suppress(ConnectionResetError):  # how the server closes on what it did not read
            while chunk := connection.recv(1000):
                answer += chunk
    assert answer.startswith(b"HTTP/1.1 408 ")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", None)
    assert service.bodies.receiving == 0


def test_bodies_are_bounded_together(address: tuple[str, int], service: Service) -> None:
    service.bodies.limit, service.bodies.max_receiving = 5000, 5000
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 4000\r\n\r\n"
    with (
        socket.create_connection(address, timeout=DEADLINE_S) as first,
        socket.create_connection(address, timeout=DEADLINE_S) as second,
    ):
        first.sendall(head + b" " * 3000)
        wait_until(lambda: service.bodies.receiving == 3000)
        second.sendall(head + b" " * 3000)
        assert second.recv(100).startswith(b"HTTP/1.1 503")
        wait_until(lambda: service.bodies.receiving == 3000)
        first.sendall(b" " * 1000)
        assert first.recv(100).startswith(b"HTTP/1.1 400")
    assert service.bodies.receiving == 0


def test_closing_a_stream_early_cancels(sdk: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = Script(ids("hello " * 3), hang=True)
    with sdk.chat.completions.create(model="tiny", messages=USER, stream=True) as stream:
        next(iter(stream))
    wait_until(lambda: len(engine.cancelled) == 1)
