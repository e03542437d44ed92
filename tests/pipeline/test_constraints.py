"""Constraint masks: output follows its grammar whatever the logits are, alone, in a batch, after a resume."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConstraintRefused, EngineFault
from pipeline.request import Constraint, SamplingParams
from pipeline.sampler import Sampler
from pipeline.sampling.grammar import Grammars
from tests.pipeline.vocabularies import END, SIZE, grammars, text_of

GRAMMARS = grammars()
LONGEST = 400  # tokens
THINK_END = 1
VOCABULARY_OF_MODEL = SIZE + 7  # rows of logits may be longer than the tokenizer's vocabulary


def constraint(kind: Any, text: str, **more: Any) -> Constraint:
    return Constraint(kind=kind, text=text, ends=(END,), **more)


def schema(value: Any, **more: Any) -> Constraint:
    return constraint("json_schema", json.dumps(value), **more)


def params(asked: Constraint | None, seed: int = 0, **more: Any) -> SamplingParams:
    return SamplingParams(seed=seed, end_tokens=(END,), constraint=asked, **more)


def logits_of(seed: int, position: int) -> np.ndarray:
    """What a model that knows nothing says; it would rather not end."""
    row = np.random.default_rng((seed, position)).normal(0, 2, VOCABULARY_OF_MODEL)
    row[END] -= 3
    return row.astype(np.float32)


def run(
    asked: dict[int, SamplingParams],
    emitted: dict[int, list[int]] | None = None,
    source: Grammars = GRAMMARS,
) -> dict[int, list[int]]:
    """All tokens of some sequences, decoded in one batch that shrinks as they end."""
    sampler = Sampler(VOCABULARY_OF_MODEL, source)
    made = {s: list((emitted or {}).get(s, [])) for s in asked}
    for sequence, its in asked.items():
        sampler.add(sequence, its, (), made[sequence])
    live = list(asked)
    while live:
        rows = [logits_of(asked[s].seed, len(made[s])) for s in live]
        sampled = sampler(mx.array(np.stack(rows)), live)
        tokens, _ = sampled.record()
        assert not sampled.refused
        for sequence, token in zip(list(live), tokens, strict=True):
            made[sequence].append(token)
            if token == END or len(made[sequence]) == LONGEST:
                live.remove(sequence)
                sampler.remove(sequence)
    return made


def alone(its: SamplingParams, emitted: list[int] | None = None) -> list[int]:
    return run({0: its}, {0: emitted or []})[0]


# Beyond 53 bits an integer of JSON is another one to every other reader.
WHOLE = st.integers(-(1 << 53), 1 << 53)

# Bounded, so that a model without sense comes to an end.
SCALARS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
        st.integers(-1000, 1000),
        st.integers(0, 5000),
    ),
    st.builds(
        lambda low, span: {"type": "string", "minLength": low, "maxLength": low + span},
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    st.builds(
        lambda values: {"enum": values},
        # Beyond 53 bits an integer of JSON is another one to every other reader.
        st.lists(
            st.one_of(st.integers(-(1 << 53), 1 << 53), st.text('abc"\\ ', max_size=4)),
            min_size=1,
            max_size=4,
        ),
    ),
    st.just({"type": "string", "pattern": "^[a-c]{2,4}$"}),
)
NAMES = st.text("abcxyz_", min_size=1, max_size=5)


def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def build(properties: dict[str, Any], needed: list[bool]) -> dict[str, Any]:
        required = [name for name, wanted in zip(properties, needed, strict=False) if wanted]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }

    return st.builds(
        build,
        st.dictionaries(NAMES, inner, max_size=4),
        st.lists(st.booleans(), min_size=4, max_size=4),
    )


def arrays(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda items, least, more: {
            "type": "array",
            "items": items,
            "minItems": least,
            "maxItems": least + more,
        },
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        objects(inner),
        arrays(inner),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(SCHEMAS, st.integers(0, 1000))
def test_output_is_valid_for_any_schema(asked: dict[str, Any], seed: int) -> None:
    tokens = alone(params(schema(asked), seed))
    if tokens[-1] == END:
        jsonschema.validate(json.loads(text_of(tokens)), asked)
    else:  # cut off by its length: it can still become valid
        matcher = GRAMMARS.matcher(schema(asked))
        assert matcher.consume_tokens(tokens)


ASKED = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["cat", "dog"]},
        "legs": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    },
    "required": ["name", "kind", "legs"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("asked", "texts"),
    [
        (constraint("regex", "(ab){2}c?"), {"abab", "ababc"}),
        (constraint("lark", 'start: "yes" | "no \\"way\\""'), {"yes", 'no "way"'}),
        (constraint("regex", "x" * 40), {"x" * 40}),
    ],
)
def test_kinds_of_grammars(asked: Constraint, texts: set[str]) -> None:
    made = {text_of(alone(params(asked, seed))) for seed in range(12)}
    assert made <= texts
    assert len(made) == min(len(texts), 2)


def test_constrained_sequences_in_a_batch_are_as_they_are_alone() -> None:
    """And so are the free ones beside them."""
    asked = {
        seed: params((schema(ASKED), None, constraint("regex", "[a-f]{5,30}"))[seed % 3], seed)
        for seed in range(9)
    }
    together = run(asked)
    assert together == {s: alone(its) for s, its in asked.items()}
    for seed in (0, 3, 6):
        jsonschema.validate(json.loads(text_of(together[seed])), ASKED)
    free = Sampler(VOCABULARY_OF_MODEL)
    free.add(1, asked[1], ())
    assert free(mx.array(logits_of(1, 0)[None]), [1]).record()[0] == together[1][:1]


@pytest.mark.parametrize("after", [(), ((THINK_END,),)])
def test_a_resumed_sequence_goes_on_as_if_it_had_not_been_interrupted(
    after: tuple[tuple[int, ...], ...],
) -> None:
    its = params(schema(ASKED, after=after), seed=5, logit_bias={THINK_END: 4.0})
    whole = alone(its)
    assert whole[-1] == END
    for cut in range(len(whole)):
        assert alone(its, whole[:cut]) == whole, f"resumed after {cut} tokens"


def test_before_its_beginning_a_constraint_forbids_only_the_end() -> None:
    tokens = alone(params(schema(ASKED, after=((THINK_END,),)), seed=3))
    begin = tokens.index(THINK_END) + 1
    assert begin > 1
    assert END not in tokens[:begin]
    jsonschema.validate(json.loads(text_of(tokens[begin:])), ASKED)
    free = alone(params(schema(ASKED, after=((0, 0, 0),), optional=True), seed=3))
    assert free == alone(params(None, seed=3)), "an optional constraint that did not begin"


@pytest.mark.parametrize("opens", [True, False])
def test_an_output_that_does_not_begin_with_the_opening_need_not_think(opens: bool) -> None:
    """With a second mark: what comes before it is free, and the same mark while it thinks is none."""
    two = schema(ASKED, after=((THINK_END,), (5, 6)), opening=0, optional=True)
    one = schema(ASKED, after=((THINK_END,),), opening=0)
    answer = alone(params(schema(ASKED), seed=3))[:-1]
    thought = [0, 9, 5, 6, 9, THINK_END] if opens else []
    assert alone(params(one, seed=3), [*thought, *answer])[-1] == END
    for its, said in ((one, thought), (two, [*thought, 9, 5, 6])):
        tokens = alone(params(its, seed=3, logit_bias={0: -100.0}), said)
        jsonschema.validate(json.loads(text_of(tokens[len(said) :])), ASKED)
    free = alone(params(two, seed=3, logit_bias={0: -100.0}), thought)
    if not opens:
        assert free == alone(params(None, seed=3, logit_bias={0: -100.0}))


def test_what_is_complete_ends_even_before_min_tokens() -> None:
    tokens = alone(params(constraint("regex", "abc"), min_tokens=50))
    assert text_of(tokens) == "abc"
    long = alone(params(constraint("regex", "[ab]+"), min_tokens=50, logit_bias={END: 100.0}))
    assert len(long) == 51, "a grammar that can go on does, until then"


def test_other_edits_do_not_break_the_grammar() -> None:
    bias = {3 + ord("z") - 32: 100.0}
    its = params(constraint("regex", "[ab]{3}"), logit_bias=bias, top_k=1, repetition_penalty=2.0)
    assert len(text_of(alone(its))) == 3
    greedy = params(constraint("regex", "[ab]{3}"), logit_bias=bias, temperature=0.0)
    assert set(text_of(alone(greedy))) <= {"a", "b"}


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (constraint("regex", "a("), "group"),
        (constraint("lark", "start: nothing"), "nothing"),
        (schema({"type": "strange"}), "strange"),
        (schema({"type": "object", "patternProperties": {"(": {}}}), "("),
        (constraint("json_schema", "[1"), ""),
        (schema({"$ref": "#"}), "NoExtension"),
    ],
)
def test_a_broken_grammar_is_refused_with_the_reason(asked: Constraint, reason: str) -> None:
    with pytest.raises(ConstraintRefused) as caught:
        GRAMMARS.matcher(asked)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_constraint_that_fails_is_the_fault_of_its_sequence_alone() -> None:
    sampler = Sampler(VOCABULARY_OF_MODEL, GRAMMARS)
    good, bad = params(constraint("regex", "a+")), params(constraint("regex", "a("))
    sampler.add(1, good, ())
    sampler.add(2, bad, ())
    sampler.add(3, good, (), emitted=[3])  # a blank, which the grammar does not know
    sampled = sampler(mx.array(np.stack([logits_of(0, 0)] * 3)), [1, 2, 3])
    tokens, _ = sampled.record()
    assert set(sampled.refused) == set(sampled.broken()) == {2, 3}
    assert text_of(tokens[:1]) == "a"
    for sequence in (2, 3):
        sampler.remove(sequence)
    assert sampler(mx.array(logits_of(0, 1)[None]), [1]).record()[0]


def test_a_grammar_that_needs_too_many_states_is_refused_while_it_matches() -> None:
    sampler = Sampler(VOCABULARY_OF_MODEL, grammars(max_lexer_states=500))
    sampler.add(0, params(constraint("regex", "(a|b)*a(a|b){400}")), ())
    for position in range(1000):
        sampled = sampler(mx.array(logits_of(0, position)[None]), [0])
        sampled.record()
        if sampled.refused:
            break
    assert sampled.refused[0]


def test_a_stage_without_grammars_says_so() -> None:
    with pytest.raises(EngineFault):
        Sampler(SIZE).add(0, params(constraint("regex", "a")), ())


def test_compiled_grammars_are_kept_within_bounds() -> None:
    source = grammars()
    for number in range(100):
        source.matcher(constraint("regex", f"a{{{number + 1}}}"))
    assert len(source._compiled) == 64
