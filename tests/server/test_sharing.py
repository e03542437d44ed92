"""Identical sequences in flight: made once, had by all, and ended for each alone."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from pipeline.errors import EngineFault, RequestCancelled
from pipeline.request import GenerationRequest, SamplingParams, TokenEvent
from server.sharing import Sharing, key_of
from tests.launcher.frontdoor.rank0 import Steered

pytestmark = pytest.mark.anyio

DEADLINE_S = 60.0
GREEDY, SEEDED = SamplingParams(temperature=0.0), SamplingParams(seed=7)


def asked(number: int, params: SamplingParams = SEEDED, **more: Any) -> GenerationRequest:
    fields: dict[str, Any] = {"prompt": (1, 2), "params": params, "max_tokens": 8, **more}
    return GenerationRequest(id=f"r{number}", origin=f"req_{number}", **fields)


def engine(stops_before: int | None = None) -> Steered:
    return Steered(random.Random(1), stops_at=lambda request, position: position == stops_before)


async def all_of(sharing: Sharing, request: GenerationRequest) -> list[TokenEvent]:
    return [event async for event in sharing.generate(request)]


async def soon(condition: Any) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.002)

    await asyncio.wait_for(poll(), DEADLINE_S)


def test_what_is_the_same() -> None:
    random_ones = [msgspec.structs.replace(SEEDED, seed=seed) for seed in (1, 2)]
    assert key_of(asked(1)) == key_of(asked(2, trace="t"))
    assert key_of(asked(1, GREEDY)) == key_of(asked(2, msgspec.structs.replace(GREEDY, seed=5)))
    biased = [
        msgspec.structs.replace(SEEDED, logit_bias=bias)
        for bias in ({1: 2.0, 3: 4.0}, {3: 4.0, 1: 2.0})
    ]
    assert key_of(asked(1, biased[0])) == key_of(asked(1, biased[1]))
    others = [
        asked(1),
        asked(1, GREEDY),
        asked(1, biased[0]),
        *(asked(1, params) for params in random_ones),
        asked(1, prompt=(1, 3)),
        asked(1, max_tokens=9),
        asked(1, emitted=(4,)),
        asked(1, tenant="ann"),
        asked(1, tenant="bob"),
    ]
    assert len({key_of(each) for each in others}) == len(others)


async def test_one_sequence_for_all_who_ask_the_same() -> None:
    made = engine(stops_before=4)
    sharing = Sharing(made)
    tasks = [asyncio.create_task(all_of(sharing, asked(number))) for number in range(3)]
    tasks.append(asyncio.create_task(all_of(sharing, asked(3, tenant="bob"))))
    await asyncio.wait_for(made.reached.wait(), DEADLINE_S)
    late = asyncio.create_task(all_of(sharing, asked(4)))
    await soon(lambda: len(sharing.admitted(frozenset({"r0", "r3"}))) == 5)
    assert sharing.admitted(frozenset({"r0"})) == {"r0", "r1", "r2", "r4"}
    made.gate.set()
    answers = await asyncio.wait_for(asyncio.gather(*tasks, late), DEADLINE_S)
    alone = [event async for event in engine().generate(asked(9))]
    assert answers == [alone] * 5
    assert [request.id for request in made.requests] == ["r0", "r3"]
    assert await all_of(sharing, asked(5)) == alone  # in flight only
    assert len(made.requests) == 3


async def test_a_fault_is_everybodys() -> None:
    made = engine(stops_before=2)
    made.error = EngineFault("rank 1 is gone")
    sharing = Sharing(made)
    tasks = [asyncio.create_task(all_of(sharing, asked(number))) for number in range(2)]
    await asyncio.wait_for(made.reached.wait(), DEADLINE_S)
    made.gate.set()
    found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), DEADLINE_S)
    assert [str(error) for error in found] == ["rank 1 is gone"] * 2


async def test_it_ends_with_the_last_who_wants_it() -> None:
    made = engine(stops_before=2)
    sharing = Sharing(made)
    tasks = [asyncio.create_task(all_of(sharing, asked(number))) for number in range(2)]
    await asyncio.wait_for(made.reached.wait(), DEADLINE_S)
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    assert made.running == 1
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert made.running == 0
    assert (sharing._joinable, sharing._sources) == ({}, set())


async def test_one_request_is_cancelled_alone() -> None:
    made = engine(stops_before=2)
    sharing = Sharing(made)
    tasks = [asyncio.create_task(all_of(sharing, asked(number))) for number in range(2)]
    await asyncio.wait_for(made.reached.wait(), DEADLINE_S)
    sharing.cancel("r0")
    sharing.cancel("unknown")
    with pytest.raises(RequestCancelled):
        await asyncio.wait_for(tasks[0], DEADLINE_S)
    made.gate.set()
    assert len(await asyncio.wait_for(tasks[1], DEADLINE_S)) == 8


async def test_a_reader_that_closes_early_leaves_nothing() -> None:
    made = engine()
    sharing = Sharing(made)
    async with aclosing(sharing.generate(asked(1))) as events:
        await anext(events)
    assert made.running == 0
    assert (sharing._joinable, sharing._sources) == ({}, set())
