"""The sampler's contract: order of the edits, independence of rows, resume, faults."""

from __future__ import annotations

import math

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import EngineFault, RequestRejected
from pipeline.request import SamplingParams, TokenLogprobs
from pipeline.sampler import Sampler
from tests.pipeline.test_sampler_reference import params as any_params

GREEDY = SamplingParams(temperature=0.0)


def greedy(**options) -> SamplingParams:
    return SamplingParams(temperature=0.0, **options)


def sample(logits: list[float], params: SamplingParams, prompt=(), emitted=()) -> int:
    sampler = Sampler(len(logits))
    sampler.add(0, params, prompt, emitted)
    chosen, _ = sampler(mx.array([logits]), [0]).record()
    return chosen[0]


@pytest.mark.parametrize(
    ("params", "prompt", "emitted", "expected"),
    [
        (GREEDY, [0], [0], 0),
        (greedy(repetition_penalty=2.5), [0], [], 1),  # 4 / 2.5 < 2
        (greedy(repetition_penalty=1.9), [0], [], 0),
        (greedy(repetition_penalty=2.5), [], [0], 1),
        (greedy(repetition_penalty=2.5), [0], [0], 1),  # once, not twice
        (greedy(presence_penalty=1.9), [], [0, 0, 0], 0),  # once, however often
        (greedy(presence_penalty=2.1), [], [0], 1),
        (greedy(presence_penalty=2.1), [0], [], 0),  # the prompt does not count
        (greedy(frequency_penalty=0.7), [], [0, 0], 0),
        (greedy(frequency_penalty=0.7), [], [0, 0, 0], 1),
        (greedy(frequency_penalty=0.7), [0, 0, 0], [], 0),
        (greedy(logit_bias={2: 5.1}), [], [], 2),
        (greedy(logit_bias={0: -2.1}), [], [], 1),
        (greedy(repetition_penalty=1.6, logit_bias={0: -0.6}), [0], [], 1),  # 2.5 - 0.6 < 2
        (greedy(repetition_penalty=1.6, presence_penalty=0.6), [], [0], 1),
        (greedy(end_tokens=(0,), min_tokens=2), [], [3], 1),
        (greedy(end_tokens=(0,), min_tokens=2), [], [3, 3], 0),
        (greedy(end_tokens=(0,), min_tokens=2, logit_bias={0: 100.0}), [], [], 1),
        (greedy(logit_bias={99: 5.0, -1: 5.0}, end_tokens=(99,), min_tokens=1), [99], [99], 0),
    ],
)
def test_edits_decide_the_greedy_token(params, prompt, emitted, expected):
    assert sample([4.0, 2.0, -1.0, -3.0], params, prompt, emitted) == expected


def test_a_negative_logit_is_multiplied_by_the_repetition_penalty():
    assert sample([-0.4, -0.6], greedy(repetition_penalty=2.0), [0]) == 1
    assert sample([-0.4, -0.6], greedy(repetition_penalty=0.5), [1]) == 1


def test_a_row_whose_every_token_is_masked_still_gives_a_token():
    everything = SamplingParams(end_tokens=(0, 1, 2), min_tokens=1, temperature=1.0)
    assert sample([1.0, 2.0, 3.0], everything) in {0, 1, 2}


@pytest.mark.parametrize("temperature", [1.0, 1.0e300])
def test_a_masked_token_is_never_drawn(temperature):
    for seed in range(50):
        params = SamplingParams(
            seed=seed, temperature=temperature, end_tokens=(0,), min_tokens=1, top_k=2
        )
        assert sample([900.0, 0.0, 0.0], params) != 0


def test_end_tokens_are_masked_for_exactly_the_first_min_tokens():
    sampler = Sampler(3)
    sampler.add(0, greedy(end_tokens=(2, 1), min_tokens=2), [])
    logits = mx.array([[1.0, 2.0, 3.0]])
    assert [sampler(logits, [0]).record()[0] for _ in range(4)] == [[0], [0], [2], [2]]


@pytest.mark.parametrize("temperature", [0.0, 1.0e-300, 1.0e-30, 1.0e-5])
def test_the_lowest_temperatures_are_greedy(temperature):
    logits = [0.0, 80.0, 79.0, -math.inf]
    assert sample(logits, SamplingParams(temperature=temperature)) == 1


def test_tokens_at_minus_infinity_are_never_drawn():
    logits = [-math.inf, 0.0, -math.inf, 0.0]
    for options in ({}, {"top_p": 0.99}, {"top_k": 3}, {"top_k": 3, "top_p": 0.99}, {"min_p": 0.1}):
        drawn = {sample(logits, SamplingParams(seed=seed, **options)) for seed in range(40)}
        assert drawn == {1, 3}


def test_tokens_that_tie_with_the_last_kept_one_are_kept():
    logits = [5.0, 3.0, 3.0, 0.0]
    drawn = {
        sample(logits, SamplingParams(seed=seed, temperature=4.0, top_k=2)) for seed in range(99)
    }
    assert drawn == {0, 1, 2}


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_logits_are_sampled_as_their_float32_values(dtype):
    logits = mx.random.normal((2, 64), key=mx.random.key(1)).astype(dtype)
    answers = []
    for given_logits in (logits, logits.astype(mx.float32)):
        sampler = Sampler(64)
        sampler.add(0, SamplingParams(logprobs=2, top_p=0.9), [])
        sampler.add(1, greedy(logprobs=0, repetition_penalty=1.1), [5])
        answers.append(sampler(given_logits, [0, 1]).record())
    assert answers[0] == answers[1]


def test_logprobs_are_of_the_raw_logits_and_best_first():
    sampler = Sampler(3)
    params = greedy(logit_bias={2: 100.0}, logprobs=2)
    sampler.add(0, params, [])
    sampler.add(1, greedy(logprobs=0), [])
    logits = mx.array(np.log([[0.5, 0.3, 0.2]] * 2), mx.float32)
    tokens, (first, second) = sampler(logits, [0, 1]).record()
    assert tokens == [2, 0]
    assert math.exp(first.chosen) == pytest.approx(0.2, abs=1e-6)
    assert [token for token, _ in first.top] == [0, 1]
    assert [math.exp(value) for _, value in first.top] == pytest.approx([0.5, 0.3], abs=1e-6)
    assert math.exp(second.chosen) == pytest.approx(0.5, abs=1e-6)
    assert second.top == ()


# Independence: a sequence's tokens are a function of its own parameters, history and logits.

VOCAB = 23  # of the generated parameters
STEPS = 5


def step_logits(sequence: int, position: int) -> np.ndarray:
    generator = np.random.default_rng([sequence, position])
    return generator.normal(0, 2, VOCAB).astype(np.float32)


def prompt_of(sequence: int) -> list[int]:
    return [sequence % VOCAB, (sequence * 7) % VOCAB]


def generate_alone(sequence: int, params: SamplingParams, emitted=()) -> tuple[list, list]:
    sampler = Sampler(VOCAB)
    sampler.add(sequence, params, prompt_of(sequence), emitted)
    tokens = list(emitted)
    logprobs: list[TokenLogprobs | None] = [None] * len(emitted)
    while len(tokens) < STEPS:
        logits = mx.array(step_logits(sequence, len(tokens))[None])
        chosen, records = sampler(logits, [sequence]).record()
        tokens += chosen
        logprobs += records
    return tokens, logprobs


@settings(max_examples=60, deadline=None)
@given(every=st.lists(any_params, min_size=2, max_size=5), data=st.data())
def test_any_batch_gives_the_tokens_of_the_sequence_alone(every, data):
    expected = {n: generate_alone(n, params) for n, params in enumerate(every)}
    sampler = Sampler(VOCAB)
    for sequence, params in enumerate(every):
        sampler.add(sequence, params, prompt_of(sequence))
    tokens = {sequence: [] for sequence in expected}
    logprobs = {sequence: [] for sequence in expected}
    while running := [n for n in tokens if len(tokens[n]) < STEPS]:
        batch = data.draw(st.lists(st.sampled_from(running), min_size=1, unique=True))
        logits = mx.array(np.stack([step_logits(n, len(tokens[n])) for n in batch]))
        for n, token, record in zip(batch, *sampler(logits, batch).record(), strict=True):
            tokens[n].append(token)
            logprobs[n].append(record)
    assert {n: (tokens[n], logprobs[n]) for n in tokens} == expected


@settings(max_examples=60, deadline=None)
@given(params=any_params, done=st.integers(0, STEPS - 1))
def test_a_resumed_sequence_continues_as_it_would_have(params, done):
    tokens, logprobs = generate_alone(3, params)
    resumed, records = generate_alone(3, params, tokens[:done])
    assert resumed == tokens
    assert records[done:] == logprobs[done:]


def test_many_edits_outgrow_no_table():
    sampler = Sampler(1000)
    sampler.add(0, greedy(presence_penalty=50.0), [])
    logits = mx.array(np.linspace(1, 0, 1000, dtype=np.float32)[None])
    chosen = [sampler(logits, [0]).record()[0][0] for _ in range(300)]
    assert chosen == list(range(300))


def test_groups_in_flight_do_not_disturb_each_other():
    def run(in_flight: bool) -> list[list[int]]:
        sampler = Sampler(VOCAB)
        for n in range(4):
            sampler.add(n, SamplingParams(seed=n, presence_penalty=0.5, top_p=0.9), [])
        groups = ([0, 1], [2, 3])
        answers = []
        for step in range(STEPS):
            logits = [mx.array(np.stack([step_logits(n, step) for n in g])) for g in groups]
            if in_flight:
                pending = [sampler(x, g) for x, g in zip(logits, groups, strict=True)]
                mx.async_eval(*[a for each in pending for a in each.arrays()])
                answers += [each.record()[0] for each in pending]
            else:
                answers += [sampler(x, g).record()[0] for x, g in zip(logits, groups, strict=True)]
        return answers

    assert run(in_flight=True) == run(in_flight=False)


# Faults

LOGITS = mx.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("params", [GREEDY, SamplingParams(), SamplingParams(top_p=0.5, top_k=2)])
def test_broken_logits_are_named_and_leave_the_other_rows_alone(params, broken):
    logits = mx.array([[1.0, 2.0, 3.0], [1.0, broken, 9.0]])
    first, second = [], []
    for answers, rows in ((first, logits), (second, LOGITS)):
        sampler = Sampler(3)
        sampler.add(7, params, [])
        sampler.add(8, msgspec.structs.replace(params, logprobs=1), [])
        sampled = sampler(rows, [7, 8])
        tokens, records = sampled.record()
        assert sampled.broken() == ((8,) if rows is logits else ())
        assert (records[1] is None) == (rows is logits)
        answers.append(tokens[0])
        answers.append(sampler(LOGITS[:1], [7]).record()[0])
    assert first == second
    # Nothing was recorded for the broken row: it is still at output position 0.
    sampler = Sampler(3)
    sampler.add(8, params, [])
    sampler(logits[1:], [8]).record()
    healthy = Sampler(3)
    healthy.add(8, params, [])
    assert sampler(LOGITS[1:], [8]).record() == healthy(LOGITS[1:], [8]).record()


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(top_p=0.9, logit_bias={1: 4.0})])
def test_a_row_of_minus_infinity_is_broken(params):
    sampler = Sampler(3)
    sampler.add(0, params, [])
    assert sampler(mx.array([[-math.inf] * 3]), [0]).broken() == (0,)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([7, 9], r"\[9\] are not known"),
        ([7, 7], "differ"),
        ([7], "shape"),
        ([7, 8, 8], "shape"),
    ],
)
def test_a_wrong_batch_is_a_fault(sequences, message):
    sampler = Sampler(3)
    sampler.add(7, GREEDY, [])
    sampler.add(8, GREEDY, [])
    with pytest.raises(EngineFault, match=message):
        sampler(LOGITS, sequences)


def test_an_empty_batch_and_a_wrong_vocabulary_are_faults():
    with pytest.raises(EngineFault, match="differ"):
        Sampler(3)(mx.zeros((0, 3)), [])
    sampler = Sampler(4)
    sampler.add(0, GREEDY, [])
    with pytest.raises(EngineFault, match="shape"):
        sampler(LOGITS[:1], [0])


def test_ids_are_added_and_removed_once():
    sampler = Sampler(3)
    sampler.add(7, GREEDY, [])
    with pytest.raises(EngineFault, match="already known"):
        sampler.add(7, GREEDY, [])
    sampler.remove(7)
    with pytest.raises(EngineFault, match="not known"):
        sampler.remove(7)
    with pytest.raises(EngineFault, match="not known"):
        sampler(LOGITS[:1], [7])


def test_a_step_is_recorded_once():
    sampler = Sampler(3)
    sampler.add(7, GREEDY, [])
    first, stale = sampler(LOGITS[:1], [7]), sampler(LOGITS[:1], [7])
    first.record()
    with pytest.raises(EngineFault, match="position 0, but has 1"):
        stale.record()


def test_a_sequence_removed_in_flight_leaves_its_successor_alone():
    sampler = Sampler(3)
    sampler.add(7, greedy(presence_penalty=9.0), [])
    pending = sampler(LOGITS[:1], [7])
    sampler.remove(7)
    sampler.add(7, greedy(logit_bias={0: 9.0}), [])
    assert pending.record() == ([2], [None])
    assert sampler(LOGITS[:1], [7]).record() == ([0], [None])


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": math.nan},
        {"frequency_penalty": math.inf},
        {"temperature": math.inf},
        {"repetition_penalty": math.inf},
        {"logit_bias": {1: math.nan}},
    ],
)
def test_a_parameter_that_is_not_finite_is_refused_by_name(options):
    with pytest.raises(RequestRejected, match=next(iter(options))):
        Sampler(3).add(0, SamplingParams(**options), [])


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {0: 1e300, 1: -1e300}},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e300, "presence_penalty": -1e300},
        {"frequency_penalty": 1e300},
        {"temperature": 1e300},
    ],
)
def test_no_finite_parameter_breaks_the_engine(options):
    sampler = Sampler(3)
    sampler.add(0, SamplingParams(**options), [0, 1])
    for _ in range(3):
        sampler(LOGITS[:1], [0]).record()
