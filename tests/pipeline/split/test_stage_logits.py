"""Stages of every architecture give the logits of the unsplit model, bit by bit."""

from __future__ import annotations

import importlib
import pkgutil

import mlx.core as mx
import mlx_lm.models
import pytest
from mlx.utils import tree_flatten

from pipeline.errors import UnsupportedModel
from pipeline.split import probe
from tests.pipeline.split.tiny import CONFIGS, TIES_WITHOUT_HEAD, Tiny, Variant, run, tie_flipped


def assert_same_logits(tiny: Tiny, bounds: list[list[int]]) -> None:
    expected = run(tiny.whole())
    finite = mx.isfinite(expected) | (expected == -mx.inf)  # some heads mask tokens out by -inf
    assert mx.all(finite).item()
    assert mx.std(mx.where(mx.isinf(expected), 0, expected)).item() > 1e-3  # not a constant
    for cut in bounds:
        got = run(tiny.pipeline(cut))
        assert mx.array_equal(got, expected).item(), f"logits differ when cut at {cut}"


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
    assert_same_logits(tiny, tiny.bounds())


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
    assert_same_logits(tiny, tiny.bounds()[2:3])


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
    assert_same_logits(tiny, tiny.bounds()[1:2])


@pytest.mark.parametrize("architecture", TIES_WITHOUT_HEAD)
def test_head_tied_by_sanitize(architecture: str) -> None:
    tiny = Tiny.make(Variant(architecture, drop_head=True))
    assert tiny.blueprint.both_ends
    assert_same_logits(tiny, tiny.bounds()[1:2])


@pytest.mark.parametrize("architecture", CONFIGS)
def test_parameters_are_partitioned(architecture: str) -> None:
    """Each parameter is on one stage, or on both ends if both read it."""
    tiny = Tiny.make(Variant(architecture))
    n = tiny.blueprint.num_layers
    stages = [tiny.stage(i, i + 1) for i in range(n)]
    for stage in stages:
        held = {name for name, _ in tree_flatten(stage.model.parameters())}
        assert held == stage.parameter_names()
        assert held == tiny.blueprint.parameters(stage.start, stage.end)
    for name in tiny.weights:
        holders = [stage.start for stage in stages if name in stage.parameter_names()]
        layer = tiny.blueprint.layer_of(name)
        if layer is not None:
            assert holders == [layer]
        elif name in tiny.blueprint.both_ends:
            assert holders == [0, n - 1]
        else:
            assert holders == ([0] if name in tiny.blueprint.first_only else [n - 1])
