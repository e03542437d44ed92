"""The client of the benchmarks, the load that it makes and the streams that it holds, over real sockets."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchlib.client import Client, Outcome, Request
from benchlib.load import Round, arrival_times, closed_loop, open_loop
from benchlib.servers import ServerFailed
from benchlib.streams import Streams, gaps_around
from tests.scripts.fake_api import ENOUGH, Answer, FakeApi, Handler, complete, serving

MODEL = "some-model"


def ask(answer: Answer, max_tokens: int = 3, chat: bool = False) -> tuple[Outcome, FakeApi]:
    async def one(url: str) -> Outcome:
        async with Client(url, MODEL, chat) as client:
            return await client.run(Request("Once", max_tokens))

    with serving(answer) as server:
        return asyncio.run(one(server.url)), server


def test_an_answer_is_timed_and_counted() -> None:
    outcome, server = ask(complete)
    assert (outcome.error, outcome.finish) == (None, "length")
    assert (outcome.prompt_tokens, outcome.tokens, len(outcome.arrivals)) == (7, 3, 3)
    times = [outcome.sent, *outcome.arrivals, outcome.ended]
    assert times == sorted(times)
    assert outcome.first_token == outcome.arrivals[0] - outcome.sent
    assert sum(outcome.gaps) == pytest.approx(outcome.arrivals[2] - outcome.arrivals[0])
    [body] = server.bodies
    assert (body["model"], body["prompt"], body["max_tokens"]) == (MODEL, "Once", 3)
    assert (body["temperature"], body["ignore_eos"], body["stream"]) == (0, True, True)


def test_chat_sends_a_message_and_reads_deltas() -> None:
    def answer(handler: Handler) -> None:
        handler.begin()
        for delta in ({"role": "assistant"}, {"content": "a"}, {"content": "b"}):
            handler.event(choices=[{"index": 0, "delta": delta, "finish_reason": None}])
        handler.event(choices=[{"index": 0, "delta": {}, "finish_reason": "length"}])
        handler.done()

    outcome, server = ask(answer, chat=True)
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "Once"}]
    assert (outcome.error, len(outcome.arrivals)) == (None, 2)


def test_without_usage_the_arrivals_are_counted() -> None:
    def answer(handler: Handler) -> None:
        handler.begin()
        handler.raw(": keep-alive\n\n")
        handler.text("one ")
        handler.text("two ", "length")
        handler.done()

    outcome, _ = ask(answer)
    assert (outcome.error, outcome.tokens) == (None, 2)


def test_usage_counts_more_than_pieces_of_text() -> None:
    def answer(handler: Handler) -> None:
        handler.begin()
        handler.text("three tokens at once", "length")
        handler.usage(5, 3)
        handler.done()

    outcome, _ = ask(answer)
    assert (len(outcome.arrivals), outcome.tokens) == (1, 3)


def refused(handler: Handler) -> None:
    handler.begin(503)
    handler.raw('{"error": {"message": "busy"}}')


def error_event(handler: Handler) -> None:
    handler.begin()
    handler.text("one ")
    handler.event(error={"message": "the ring broke"})
    handler.done()


def broken_off(handler: Handler) -> None:
    handler.begin()
    handler.text("one ")


def no_json(handler: Handler) -> None:
    handler.begin()
    handler.raw("data: {oops\n\n")


def hung_up(handler: Handler) -> None:
    handler.close_connection = True


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (refused, "status 503"),
        (error_event, "the ring broke"),
        (broken_off, "without a finish reason"),
        (no_json, "not a chunk"),
        (hung_up, "disconnected"),
    ],
)
def test_a_failure_is_part_of_the_outcome(answer: Answer, says: str) -> None:
    outcome, _ = ask(answer)
    assert outcome.error is not None
    assert says in outcome.error


def test_nobody_listens() -> None:
    with serving(complete) as server:
        url = server.url

    async def one() -> Outcome:
        async with Client(url, MODEL) as client:
            return await client.run(Request("Once", 1))

    assert "Connect" in (asyncio.run(one()).error or "")


# load


class CountingClient(Client):
    """Knows how many of its requests were under way at the same time at most."""

    under_way = most = 0

    async def run(
        self,
        request: Request,
        due: float | None = None,
        on_text: Callable[[Outcome], None] | None = None,
    ) -> Outcome:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        outcome = await super().run(request, due, on_text)
        self.under_way -= 1
        return outcome


def run_load(
    answer: Answer, work: Callable[[CountingClient], Awaitable[Round]]
) -> tuple[Round, FakeApi]:
    async def all_of_it(url: str) -> Round:
        client = CountingClient(url, MODEL)
        async with client:
            return await work(client)

    with serving(answer) as server:
        return asyncio.run(all_of_it(server.url)), server


def test_a_closed_loop_keeps_so_many_requests_open() -> None:
    """The barrier opens only when three requests are there at the same time."""
    barrier = threading.Barrier(3)

    def answer(handler: Handler) -> None:
        barrier.wait(ENOUGH)
        complete(handler)

    async def loop(client: CountingClient) -> Round:
        done = await closed_loop(client, requests, 3)
        assert client.most == 3
        return done

    requests = [Request(f"prompt {i}", 2) for i in range(9)]
    done, server = run_load(answer, loop)
    assert [outcome.error for outcome in done.outcomes] == [None] * 9
    assert sorted(body["prompt"] for body in server.bodies) == [r.prompt for r in requests]


def test_an_open_loop_does_not_wait_for_answers() -> None:
    """The first request is answered only once all others have come; and none comes before it is due."""
    count = 5
    all_here = threading.Barrier(count)
    came: dict[str, float] = {}

    def answer(handler: Handler) -> None:
        came[handler.body["prompt"]] = time.perf_counter()
        all_here.wait(ENOUGH)
        complete(handler)

    requests = [Request(f"prompt {i}", 2) for i in range(count)]
    done, _ = run_load(answer, lambda client: open_loop(client, requests, rate=20.0, seed=3))
    assert [outcome.error for outcome in done.outcomes] == [None] * count
    started = done.outcomes[0].sent
    due = [outcome.sent - started for outcome in done.outcomes]
    assert due == pytest.approx(arrival_times(count, 20.0, seed=3))
    for request, outcome in zip(requests, done.outcomes, strict=True):
        assert came[request.prompt] > outcome.sent


def test_arrivals_are_poisson_and_repeatable() -> None:
    times = arrival_times(20_001, rate=4.0, seed=1)
    assert times == arrival_times(20_001, rate=4.0, seed=1)
    assert times != arrival_times(20_001, rate=4.0, seed=2)
    assert times[0] == 0.0
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert sum(pauses) / len(pauses) == pytest.approx(1 / 4.0, rel=0.03)
    assert sum(pause > 1 / 4.0 for pause in pauses) / len(pauses) == pytest.approx(0.368, abs=0.01)


def test_rates_are_totals_over_the_wall_time() -> None:
    good = Outcome(0.0, [1.0, 1.5, 3.5], 3.6, prompt_tokens=5, tokens=3, finish="length")
    early = Outcome(0.0, [2.0], 2.1, prompt_tokens=5, tokens=1, finish="stop")
    bad = Outcome(0.0, [0.5, 9.0], 9.1, tokens=50, error="lost")
    round_ = Round([good, early, bad], seconds=8.0)
    summary = round_.summary()
    assert (summary["tokens_per_s"], summary["requests_per_s"]) == (4 / 8, 2 / 8)
    assert (summary["requests"], summary["failed"], summary["short"]) == (3, 1, 1)
    assert (summary["first_token_ms_p50"], summary["inter_token_ms_p50"]) == (1500.0, 1250.0)
    assert round_.errors == {"lost": 1}


# streams


def endless(handler: Handler) -> None:
    handler.begin()
    while True:
        handler.text("word ")


def test_streams_run_until_they_are_left() -> None:
    async def watch(url: str) -> int:
        requests = [Request(f"prompt {i}", 9) for i in range(3)]
        async with Client(url, MODEL) as client, Streams(client, requests) as streams:
            await streams.until(lambda stream: len(stream.arrivals) >= 20)
            return len(streams.outcomes)

    with serving(endless) as server:
        assert asyncio.run(watch(server.url)) == 3
        for _ in range(3):  # each handler ends because its connection was closed
            assert server.ended.acquire(timeout=ENOUGH)


def test_a_stream_that_ends_early_is_an_error() -> None:
    async def watch(url: str) -> None:
        async with Client(url, MODEL) as client, Streams(client, [Request("a", 3)]) as streams:
            await streams.until(lambda stream: len(stream.arrivals) > 3)

    with serving(complete) as server, pytest.raises(ServerFailed, match="ended early"):
        asyncio.run(watch(server.url))


def test_gaps_are_told_apart_by_the_arrival() -> None:
    arrivals = [0.0, 1.0, 3.0, 4.0, 8.0, 9.0]
    assert gaps_around(arrivals, start=2.0, end=5.0) == ([1.0], [2.0, 1.0, 4.0])
    assert gaps_around(arrivals, start=1.0, end=1.5) == ([1.0], [2.0])


@given(
    st.lists(st.integers(0, 1000), min_size=2, unique=True).map(sorted),
    st.integers(0, 1000),
    st.integers(0, 1000),
)
def test_a_gap_over_the_whole_arrival_counts(arrivals: list[int], start: int, length: int) -> None:
    end = start + length + 1
    before, during = gaps_around(arrivals, start, end)
    gaps = [b - a for a, b in itertools.pairwise(arrivals)]
    assert len(before) + len(during) <= len(gaps)
    around = [b - a for a, b in itertools.pairwise(arrivals) if a <= start and end <= b]
    assert set(around) <= set(during)
    assert sum(before) <= max(0, start - arrivals[0])
