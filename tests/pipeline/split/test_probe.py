from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_map

from pipeline.errors import UnsupportedModel
from pipeline.split import Placement, Stage, probe
from tests.pipeline.split.tiny import CONFIGS, Variant

V, D = 11, 8


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(D, D)

    def __call__(self, h: mx.array, cache: Any) -> mx.array:
        return h + self.proj(h)


class Plain(nn.Module):
    """The smallest model with an untied head."""

    def __init__(self, n: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, D)
        self.layers = [Layer() for _ in range(n)]
        self.norm = nn.RMSNorm(D)
        self.head = nn.Linear(D, V)

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        h = self.embed(tokens)
        for layer, c in zip(self.layers, cache, strict=True):
            h = layer(h, c)
        return self.head(self.norm(h))


class Backwards(Plain):
    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        h = self.embed(tokens)
        for layer in reversed(self.layers):
            h = layer(h, None)
        return self.head(self.norm(h))


class SkipsInDecode(Plain):
    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        h = self.embed(tokens)
        for layer in self.layers[: 4 if tokens.shape[1] > 1 else 2]:
            h = layer(h, None)
        return self.head(self.norm(h))


class MixedContainer(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.mixed = [mx.zeros((2,)), nn.Linear(2, 2)]


class Odd(Plain):
    """Reads parameters in all the ways that are not a module's own call."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = mx.full((D,), 2.0)  # by the code before the layers
        self.tables = [mx.ones((D,)), mx.full((D,), 3.0)]  # a list, after the layers
        self.between = nn.Linear(D, D)  # before layer 2
        self.unused = nn.Linear(3, 3)
        self.split = nn.Linear(D, 2 * D)  # answers no single array [B, L, ...] of its own
        self.split_by = nn.Linear(D, D)

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        h = self.embed(tokens) * self.scale
        h = h + h @ self.split.weight[:D] + self.split_by.weight[0]
        for i, layer in enumerate(self.layers):
            if i == 2:
                h = self.between(h)
            h = layer(h, None)
        return self.head(self.norm(h) * self.tables[1])


def fill_up(model: nn.Module) -> None:
    def noise(like: mx.array) -> mx.array:
        return mx.random.normal(like.shape, key=mx.random.key(like.size))

    model.update(tree_map(noise, model.parameters()))


def test_places_of_a_plain_model() -> None:
    found = probe(Plain())
    assert (found.num_layers, found.passes, found.architecture) == (4, 1, "test_probe")
    assert found.first_only == {"embed.weight"}
    assert found.last_only == {"norm.weight", "head.weight", "head.bias"}
    assert found.both_ends == frozenset()
    assert found.layer_of("layers.2.proj.bias") == 2
    assert found.layer_of("embed.weight") is None
    with pytest.raises(KeyError):
        found.layer_of("no.such")
    assert found.parameters(0, 1) == {"embed.weight", "layers.0.proj.weight", "layers.0.proj.bias"}
    assert found.parameters(1, 3) == {
        f"layers.{i}.proj.{part}" for i in (1, 2) for part in ("weight", "bias")
    }
    everything = {name for name, _ in tree_flatten(Plain().parameters())}
    assert found.parameters(0, 4) == everything


def test_places_of_odd_reads() -> None:
    found = probe(Odd())
    everywhere = Placement(frozenset(range(4)), first=True, last=True)
    assert found.placement["scale"] == everywhere
    assert found.placement["split.weight"] == everywhere
    assert found.placement["split_by.weight"] == everywhere
    assert found.placement["tables.0"] == found.placement["tables.1"] == Placement(last=True)
    assert found.placement["between.weight"] == Placement(frozenset({2}))
    assert found.layer_of("between.bias") == 2
    assert found.placement["unused.weight"] == Placement(last=True)


@pytest.mark.parametrize("make", [Plain, Odd])
def test_stages_of_these_models(make: type[Plain]) -> None:
    whole, found = make(), probe(make())
    fill_up(whole)
    weights = dict(tree_flatten(whole.parameters()))
    tokens = mx.array([[1, 2, 3], [4, 5, 6]])
    passed: Any = tokens
    for i in range(4):
        stage = Stage(make(), found, i, i + 1)
        stage.model.load_weights([(k, weights[k]) for k in stage.parameter_names()])
        passed = stage(passed, stage.make_cache())
    assert mx.array_equal(passed, whole(tokens, cache=[None] * 4)).item()


@pytest.mark.parametrize("make", [Backwards, SkipsInDecode, MixedContainer])
def test_what_can_not_be_split_is_refused_by_name(make: type[Plain]) -> None:
    with pytest.raises(UnsupportedModel, match="test_probe"):
        probe(make())


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"linear.*no list of layers"):
        probe(nn.Linear(2, 2))


def classes_of(model: nn.Module) -> list[type]:
    return [type(module) for _, module in model.named_modules()]


@pytest.mark.parametrize("architecture", ["llama", "dbrx", "gemma3n"])
def test_classes_are_as_before(architecture: str) -> None:
    model, hooks = Variant(architecture).build(), dict(vars(nn.Module))
    before = classes_of(model)
    probe(model)
    assert classes_of(model) == before
    assert dict(vars(nn.Module)) == hooks


def test_classes_are_as_before_after_an_exception() -> None:
    class Fails(Plain):
        def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
            super().__call__(tokens, cache)
            raise ZeroDivisionError

    model = Fails()
    before = classes_of(model)
    with pytest.raises(ZeroDivisionError):
        probe(model)
    assert classes_of(model) == before


def test_another_instance_is_not_observed_meanwhile() -> None:
    other = Plain()
    seen: list[type] = []

    class Looks(Plain):
        def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
            seen.extend(classes_of(other))
            return super().__call__(tokens, cache)

    probe(Looks())
    assert set(seen) == {Plain, Layer, nn.Embedding, nn.Linear, nn.RMSNorm}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_nothing_is_evaluated(architecture: str) -> None:
    """Else a model that fits no single machine could not be probed."""
    model = Variant(architecture).build()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    probe(model)
    small = 32 << 10  # bytes: offsets and masks; the parameters are several times that
    assert mx.get_peak_memory() - before < small
    assert sum(array.nbytes for _, array in tree_flatten(model.parameters())) > 2 * small


class Looks(Plain):
    """Looks at a value in decode steps."""

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        logits = super().__call__(tokens, cache)
        if tokens.shape[1] == 1:
            mx.max(logits).item()
        return logits


def test_code_that_looks_at_values_is_not_lazy() -> None:
    assert probe(Plain()).lazy
    assert not probe(Looks()).lazy
    assert not probe(Variant("dbrx").build()).lazy
