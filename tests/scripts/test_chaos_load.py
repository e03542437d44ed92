"""The load of the chaos script: an answer that is not the known one is found, whatever is wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from chaoslib.answers import Answer, Task, differences, tasks
from chaoslib.load import Load, silence_after
from tests.scripts.fake_api import Handler, serving

[STREAM, PLAIN] = tasks("m", 1, 1, 4, words=True, seeded=False)
WORDS = ["a", "b", "c", "d"]


def chunk(handler: Handler, word: str, finish: str | None = None, name: str = "id") -> None:
    logprobs = {"tokens": [word] if word else []}
    handler.event(id=name, choices=[{"text": word, "finish_reason": finish, "logprobs": logprobs}])


def end(handler: Handler, usage: int = 4, finish: str | None = "length") -> None:
    chunk(handler, "", finish)
    counts = {"prompt_tokens": 7, "completion_tokens": usage}
    handler.event(id="id", choices=[], usage=counts)
    handler.done()


def good(handler: Handler) -> None:
    handler.begin()
    handler.raw(": keep-alive\n\n")
    for word in WORDS:
        chunk(handler, word)
    end(handler)


def run(answer: Callable[[Handler], None], task: Task = STREAM, times: int = 1) -> Load:
    """The answers to `task`, compared with that of `good`."""

    async def go(url: str) -> Load:
        async with httpx.AsyncClient(base_url=url) as http:
            load = Load(http)
            known = Answer("abcd", WORDS, "length", (7, 4), {"id"})
            for _ in range(times):
                await load.compare([task], {task.name: known})
            return load

    with serving(answer) as server:
        return asyncio.run(go(server.url))


def test_the_same_answer_is_right() -> None:
    load = run(good, times=3)
    assert (load.finished, load.wrong, len(load.arrivals)) == (3, [], 12)


def lost(handler: Handler) -> None:
    handler.begin()
    for word in ["a", "b", "d"]:
        chunk(handler, word)
    end(handler)


def repeated(handler: Handler) -> None:
    handler.begin()
    for word in ["a", "b", "b", "c", "d"]:
        chunk(handler, word)
    end(handler)


def other_id(handler: Handler) -> None:
    handler.begin()
    for number, word in enumerate(WORDS):
        chunk(handler, word, name=f"id{number // 2}")
    end(handler)


def other_usage(handler: Handler) -> None:
    handler.begin()
    for word in WORDS:
        chunk(handler, word)
    end(handler, usage=5)


def other_finish(handler: Handler) -> None:
    handler.begin()
    for word in WORDS:
        chunk(handler, word)
    end(handler, finish="stop")


def cut_off(handler: Handler) -> None:
    handler.begin()
    chunk(handler, "a")
    handler.close_connection = True


def failed(handler: Handler) -> None:
    handler.begin()
    chunk(handler, "a")
    handler.event(error={"message": "gone"})
    handler.done()


def goes_on(handler: Handler) -> None:
    good(handler)
    chunk(handler, "e")


def status_500(handler: Handler) -> None:
    handler.begin(500)
    handler.raw("{}")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lost, "token 2 of 4 is ['d'], not ['c', 'd'] (3 tokens came)"),
        (repeated, "token 2 of 4 is ['b', 'c', 'd'], not ['c', 'd'] (5 tokens came)"),
        (other_id, "ids"),
        (other_usage, "usage is (7, 5), not (7, 4)"),
        (other_finish, "finish is stop, not length"),
        (cut_off, "without [DONE]"),
        (failed, "an error in the answer"),
        (goes_on, "after [DONE]"),
        (status_500, "status 500"),
    ],
)
def test_a_wrong_answer_is_told(answer: Callable[[Handler], None], says: str) -> None:
    [wrong] = run(answer).wrong
    assert wrong.task == STREAM.name
    assert says in "; ".join(wrong.what)


def test_an_answer_in_one_piece_is_compared_likewise() -> None:
    def plain(text: str) -> Callable[[Handler], None]:
        def answer(handler: Handler) -> None:
            choice = {"text": text, "finish_reason": "length", "logprobs": {"tokens": list(text)}}
            usage = {"prompt_tokens": 7, "completion_tokens": 4}
            body: dict[str, Any] = {"id": "id", "choices": [choice], "usage": usage}
            handler.begin()
            handler.raw(httpx.Request("POST", "http://x", json=body).content.decode())

        return answer

    assert run(plain("abcd"), PLAIN).wrong == []
    assert "token 3" in run(plain("abcx"), PLAIN).wrong[0].what[0]


def test_a_request_that_is_refused_for_now_is_sent_again() -> None:
    refusals = iter([True, True])

    def answer(handler: Handler) -> None:
        if not next(refusals, False):
            return good(handler)
        handler.send_response(503)
        handler.send_header("Retry-After", "0")
        handler.end_headers()
        return None

    load = run(answer)
    assert (load.finished, load.refused, load.wrong) == (1, 2, [])


def test_the_load_goes_on_until_it_is_stopped() -> None:
    async def go(url: str) -> Load:
        async with httpx.AsyncClient(base_url=url) as http:
            load = Load(http)
            known = await load.once([STREAM])
            pressing = asyncio.create_task(load.press([STREAM], known))
            while load.finished < 5:
                await asyncio.sleep(0.01)
            load.stop()
            await asyncio.wait_for(pressing, 20)
            return load

    with serving(good) as server:
        load = asyncio.run(go(server.url))
    assert load.finished >= 5
    assert load.wrong == []


def test_seeded_tasks_have_seeds_of_their_own() -> None:
    seeds = [task.body["seed"] for task in tasks("m", 8, 4, 9, words=False, seeded=True)]
    assert len(set(seeds)) == 12
    greedy = tasks("m", 8, 4, 9, words=False, seeded=False)
    assert [task.stream for task in greedy] == [True] * 8 + [False] * 4
    assert len({tuple(task.body["prompt"]) for task in greedy}) == 12


@pytest.mark.parametrize(
    ("arrivals", "fault", "until", "expected"),
    [
        ([1, 2, 3, 9, 10, 11], 3.5, 20, 5.5),  # the pause began before the fault
        ([1, 2, 3, 4, 5, 11, 12], 3.5, 20, 7.5),  # what was on its way still came
        ([1, 2, 3, 4, 5, 11, 12, 30], 3.5, 20, 7.5),  # the next fault is after `until`
        ([1, 2, 3], 3.5, 20, None),
    ],
)
def test_a_fault_is_felt_as_the_longest_pause(
    arrivals: list[float], fault: float, until: float, expected: float | None
) -> None:
    assert silence_after(arrivals, fault, until) == expected


def test_an_equal_answer_has_no_differences() -> None:
    answer = Answer("ab", ["a", "b"], "stop", (1, 2), {"x"})
    assert differences(answer, Answer("ab", ["a", "b"], "stop", (1, 2), {"y"})) == []
