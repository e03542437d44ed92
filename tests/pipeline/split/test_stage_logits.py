"""Stages of every architecture give the logits of the unsplit model, bit by bit."""

from __future__ import annotations

import importlib
import pkgutil

import mlx.core as mx
import mlx_lm.models
import pytest
from mlx.utils import tree_flatten

from pipeline.errors import UnsupportedModel
from pipeline.split import Stage, probe
from tests.pipeline.split.tiny import (
    CONFIGS,
    TIES_WITHOUT_HEAD,
    Pipeline,
    Tiny,
    Variant,
    run,
    tie_flipped,
)


def assert_same_logits(tiny: Tiny, pipelines: list[Pipeline]) -> None:
    expected = run(tiny.whole())
    finite = mx.isfinite(expected) | (expected == -mx.inf)  # some heads mask tokens out by -inf
    assert mx.all(finite).item()
    assert mx.std(mx.where(mx.isinf(expected), 0, expected)).item() > 1e-3  # not a constant
    for pipeline in pipelines:
        assert mx.array_equal(run(pipeline), expected).item(), f"cut at {pipeline.bounds}"


def assert_partition(tiny: Tiny, stages: list[Stage]) -> None:
    """Each parameter is on one of the stages, which have a layer each, or on both ends if both read it."""
    blueprint, n = tiny.blueprint, len(stages)
    for stage in stages:
        held = {name for name, _ in tree_flatten(stage.model.parameters())}
        assert held == stage.parameter_names()
        assert held == blueprint.parameters(stage.start, stage.end)
    for name in tiny.weights:
        holders = [stage.start for stage in stages if name in stage.parameter_names()]
        layer = blueprint.layer_of(name)
        if layer is not None:
            assert holders == [layer]
        elif name in blueprint.both_ends:
            assert holders == [0, n - 1]
        else:
            assert holders == ([0] if name in blueprint.first_only else [n - 1])


def test_every_installed_architecture_has_a_config() -> None:
    installed = set()
    for info in pkgutil.iter_modules(mlx_lm.models.__path__):
        module = importlib.import_module(f"mlx_lm.models.{info.name}")
        if hasattr(module, "Model") and hasattr(module, "ModelArgs"):
            installed.add(info.name)
    assert installed == set(CONFIGS)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_dense(architecture: str) -> None:
    tiny = Tiny.make(Variant(architecture))
    n = tiny.blueprint.num_layers
    finest = tiny.pipeline(range(n + 1))
    assert_partition(tiny, finest.stages)
    others = [tiny.pipeline(bounds) for bounds in ([0, 2, n], [0, 1, n - 2, n])]
    assert_same_logits(tiny, [finest, *others])


@pytest.mark.parametrize("architecture", CONFIGS)
def test_quantized(architecture: str) -> None:
    tiny = Tiny.make(Variant(architecture, quantized=True, flip_tie=architecture == "seed_oss"))
    packed = [name for name, array in tiny.weights.items() if array.dtype == mx.uint32]
    assert packed, "nothing was quantized"
    for name in packed:  # scales and biases follow their weight
        place = tiny.blueprint.placement[name]
        stem = name.removesuffix("weight")
        for sibling in (stem + "scales", stem + "biases"):
            assert tiny.blueprint.placement.get(sibling, place) == place
    n = tiny.blueprint.num_layers
    assert_same_logits(tiny, [tiny.pipeline([0, 1, n - 1, n]), tiny.pipeline([0, n])])


@pytest.mark.parametrize(
    "variant",
    [Variant("seed_oss", quantized=True), Variant("baichuan_m1", flip_tie=True)],
    ids=lambda variant: variant.architecture,
)
def test_variants_that_mlx_lm_can_not_run_are_refused(variant: Variant) -> None:
    """Tied heads: one takes a quantized weight for a dense one, one calls a head that is not there."""
    with pytest.raises(UnsupportedModel, match=variant.architecture):
        probe(variant.build())


TIE_CONFIGURABLE = [name for name, config in CONFIGS.items() if tie_flipped(config)]


@pytest.mark.parametrize("architecture", [n for n in TIE_CONFIGURABLE if n != "baichuan_m1"])
def test_other_setting_of_tied_head(architecture: str) -> None:
    tiny = Tiny.make(Variant(architecture, flip_tie=True))
    assert_same_logits(tiny, [tiny.pipeline([0, 2, tiny.blueprint.num_layers])])


@pytest.mark.parametrize("architecture", TIES_WITHOUT_HEAD)
def test_head_tied_by_sanitize(architecture: str) -> None:
    tiny = Tiny.make(Variant(architecture, drop_head=True))
    assert tiny.blueprint.both_ends
    assert_same_logits(tiny, [tiny.pipeline([0, 2, tiny.blueprint.num_layers])])
