"""Adapters under every gradient mode: the frozen weights take part in nothing."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from core.errors import UnsupportedLayerError
from core.lora import LoraConfig, add_lora
from core.tasks.interface import Batch
from privacy.gradient_modes import GRADIENT_MODES
from tests.support.clipped_sums import (
    SHAPES,
    clipped,
    distance,
    each_gradient,
    middle_clip,
    model_of,
    norm_of,
    oracle,
    random_batch,
)
from tests.support.private_training import flat, plan_of, tiny_model, train
from tests.support.tiny import TinyData, train_config

TARGETS = st.lists(
    st.sampled_from(["query", "key", "value", "output", "up", "down", "head"]),
    min_size=1,
    max_size=4,
    unique=True,
)


def adapted(model: nn.Module, targets: list[str], rank: int = 2) -> nn.Module:
    """With adapters that add something, so that both of their matrices have gradients."""
    generator = torch.Generator().manual_seed(11)
    add_lora(model, LoraConfig(rank=rank, alpha=3.0, targets=tuple(targets)), generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b.weight"):
                parameter.normal_(std=0.3, generator=generator)
    return model


@settings(max_examples=40)
@given(
    shape=SHAPES,
    targets=TARGETS,
    rank=st.integers(1, 4),
    rule=st.sampled_from(["flat", "per_layer", "automatic"]),
    seed=st.integers(0, 99),
    count=st.integers(1, 5),
    length=st.integers(2, 12),
)
def test_clipped_sums_are_those_of_hooks_and_of_the_oracle(
    shape: dict[str, Any],
    targets: list[str],
    rank: int,
    rule: str,
    seed: int,
    count: int,
    length: int,
) -> None:
    model, batch = adapted(model_of(**shape), targets, rank), random_batch(seed, count, length)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    expected = oracle(gradients, clip, rule)
    if norm_of(expected) < 1e-3:
        return  # every example is shorter than what it is to predict
    assert all(".lora_" in name for name in expected)
    found = clipped(model, batch, clip=clip, rule=rule)
    assert distance(found, expected) < 1e-5
    assert distance(found, clipped(model, batch, clip=clip, mode="hooks", rule=rule)) < 1e-5
    without = {n: t * (not n.endswith("lora_b.weight")) for n, t in found.items()}
    assert distance(without, expected) > 1e-5


@settings(max_examples=20)
@given(shape=SHAPES, targets=TARGETS, seed=st.integers(0, 99), length=st.integers(2, 12))
def test_an_example_more_or_less_moves_the_sum_by_at_most_the_clip(
    shape: dict[str, Any], targets: list[str], seed: int, length: int
) -> None:
    model, batch = adapted(model_of(**shape), targets), random_batch(seed, 4, length)
    tight = 1e-2 * (1 - GRADIENT_MODES["one_backward"].slack(train_config()))
    others = Batch(batch.tokens[1:], batch.attention_mask[1:], batch.labels[1:])
    left, right = (clipped(model, one, clip=tight) for one in (batch, others))
    assert norm_of({n: left[n].double() - right[n].double() for n in left}) <= 1e-2


@pytest.mark.parametrize("mode", sorted(GRADIENT_MODES))
def test_training_moves_the_adapters_and_nothing_else(mode: str) -> None:
    model = adapted(tiny_model(), ["mix", "head"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, TinyData.make(12), plan_of(gradient_mode=mode))
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {f"{layer}.lora_{side}.weight" for layer in ("mix", "head") for side in "ab"}


def test_one_backward_and_hooks_end_alike() -> None:
    def ended(mode: str) -> torch.Tensor:
        model = adapted(tiny_model(tied=True), ["mix", "head"])
        train(model, TinyData.make(12), plan_of(gradient_mode=mode))
        return flat(model)

    torch.testing.assert_close(ended("one_backward"), ended("hooks"), atol=2e-3, rtol=1e-3)


def test_a_trained_bias_beside_an_adapter_is_refused() -> None:
    """The layer's own kind is not one that clipping knows."""
    model = adapted(tiny_model(), ["mix"])
    model.mix.bias.requires_grad_(True)
    with pytest.raises(UnsupportedLayerError, match="got mix: LoraLinear"):
        train(model, TinyData.make(4), plan_of(gradient_mode="one_backward"))
