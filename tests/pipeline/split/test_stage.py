from __future__ import annotations

import io
import weakref
from typing import Any

import mlx.core as mx
import pytest

from pipeline.errors import FrameError
from pipeline.split import Message, Stage, probe
from pipeline.split.caches import arrays_of
from tests.pipeline.split.tiny import TOKENS, Tiny, Variant, run

STEP = TOKENS[:, :3]


@pytest.fixture(scope="module")
def llama() -> Tiny:
    """Full attention in layers 0, 3 and 5, sliding windows in the others."""
    return Tiny.make(Variant("llama"))


def graph(arrays: list[mx.array]) -> str:
    """The operations that are still to be done for `arrays`, as text."""
    text = io.StringIO()
    mx.export_to_dot(text, *arrays)
    return text.getvalue()


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 2), (3, 2), (0, 7)])
def test_range_outside_of_the_model(llama: Tiny, start: int, end: int) -> None:
    with pytest.raises(ValueError, match=rf"\[{start}, {end}\)"):
        Stage(llama.variant.build(), llama.blueprint, start, end)


def test_blueprint_of_another_model(llama: Tiny) -> None:
    with pytest.raises(ValueError, match=r"scales|biases"):
        Stage(Variant("llama", quantized=True).build(), llama.blueprint, 0, 2)


def test_inputs_at_the_wrong_place(llama: Tiny) -> None:
    first, middle = llama.stage(0, 2), llama.stage(2, 4)
    message = first(STEP, first.make_cache())
    assert isinstance(message, Message)
    with pytest.raises(FrameError):
        middle(STEP, middle.make_cache())
    with pytest.raises(FrameError):
        first(message, first.make_cache())
    with pytest.raises(FrameError):
        middle(Message(STEP, {"other": mx.zeros((1, 3, 64))}), middle.make_cache())
    kv = (mx.zeros((1, 2, 3, 16)),) * 2
    with pytest.raises(FrameError):
        middle(Message(STEP, {**message.tree, "kv": (kv,)}), middle.make_cache())


def test_shapes_are_known_before_evaluation(llama: Tiny) -> None:
    stage = llama.stage(0, 2)
    message = stage(STEP, stage.make_cache())
    assert isinstance(message, Message)
    assert message.tree["hidden"].shape == (1, 3, 64)
    assert "Matmul" in graph([message.tree["hidden"]])


@pytest.mark.parametrize("architecture", ["llama", "gemma3n", "kimi_k3", "talkie", "deepseek_v41"])
def test_nothing_of_a_call_stays(architecture: str) -> None:
    tiny = Tiny.make(Variant(architecture))
    first, second = tiny.stage(0, 3), tiny.stage(3, 4)
    caches = first.make_cache(), second.make_cache()
    message = first(STEP, caches[0])
    assert isinstance(message, Message)
    passed = second(message, caches[1])
    assert isinstance(passed, Message)
    alive = [weakref.ref(a) for a in (leaf(message.tree["hidden"]), leaf(passed.tree["hidden"]))]
    del message, passed
    assert [reference() for reference in alive] == [None, None]


def leaf(tree: Any) -> mx.array:
    while not isinstance(tree, mx.array):
        tree = next(iter(tree.values())) if isinstance(tree, dict) else tree[0]
    return tree


def test_stage_works_after_an_exception(llama: Tiny) -> None:
    expected = run(llama.whole())
    pipeline = llama.pipeline([0, 2, 6])
    for stage, layer in zip(pipeline.stages, (1, 4), strict=True):
        mlp = stage.model.layers[layer]["mlp"]
        stage.model.layers[layer]["mlp"] = fails
        with pytest.raises(ZeroDivisionError):
            run(pipeline)
        stage.model.layers[layer]["mlp"] = mlp
        assert mx.array_equal(run(pipeline), expected).item()


def fails(_: mx.array) -> mx.array:
    raise ZeroDivisionError


def test_model_can_not_be_called_past_its_stage(llama: Tiny) -> None:
    stage = llama.stage(0, 2)
    with pytest.raises(RuntimeError, match="through the stage"):
        stage.model(STEP)


def test_two_sequences_in_turns(llama: Tiny) -> None:
    """Micro-batches interleave on a stage; so do the passes of looped models."""
    for tiny in (llama, Tiny.make(Variant("iquestloopcoder")), Tiny.make(Variant("nanbeige"))):
        pipeline = tiny.pipeline([0, 2, tiny.blueprint.num_layers])
        expected = [run(tiny.whole(), tokens) for tokens in (TOKENS, TOKENS + 3)]
        got = in_turns(pipeline.stages, [TOKENS, TOKENS + 3])
        for logits, wanted in zip(got, expected, strict=True):
            assert mx.array_equal(logits, wanted).item()


def in_turns(stages: list[Stage], sequences: list[mx.array]) -> list[mx.array]:
    """Each stage runs its step for all sequences before the next stage runs."""
    caches = [[stage.make_cache() for stage in stages] for _ in sequences]
    outputs: list[list[mx.array]] = [[] for _ in sequences]
    start = 0
    for length in (5, 4, 1, 1, 1):
        passed: list[Any] = [tokens[:, start : start + length] for tokens in sequences]
        for pass_index in range(stages[0].blueprint.passes):
            for s, stage in enumerate(stages):
                for i, own in enumerate(caches):
                    passed[i] = stage(passed[i], own[s], pass_index)
        for output, logits in zip(outputs, passed, strict=True):
            output.append(logits)
        start += length
    return [mx.concatenate(output, axis=1) for output in outputs]


def test_shadows_are_evaluated_with_the_output(llama: Tiny) -> None:
    """Else the operations still to be done for them would grow with every token."""
    stage = llama.stage(3, 4)  # only full attention: a shadow stands for the sliding windows
    assert len(stage.caches.shadows) == 1
    first = llama.stage(0, 3)
    caches = first.make_cache(), stage.make_cache()
    for tokens in (STEP, STEP[:, :1], STEP[:, 1:2]):
        message = first(tokens, caches[0])
        assert isinstance(message, Message)
        passed = stage(message, caches[1])
        assert isinstance(passed, Message)
        shadow = caches[1][stage.caches.first_shadow]
        mx.eval(passed.tree["hidden"])
        assert "label" not in graph(arrays_of([shadow]))
    assert shadow.offset == 5
    assert shadow.nbytes <= 4 * 256 * 2 * 4  # one head of one dimension


def test_a_stage_holds_no_arrays_of_others(llama: Tiny) -> None:
    stage = Stage(llama.variant.build(), probe(llama.variant.build()), 2, 4)
    assert stage.parameter_names() == llama.blueprint.parameters(2, 4)
    assert not stage.is_first
    assert not stage.is_last
    held = sum(name.startswith("model.layers.2.") for name in stage.parameter_names())
    assert held * 2 == len(stage.parameter_names())
