"""The functional form of one backward pass: norms, sums and fillers."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from core.lora import LoraConfig, add_lora
from core.tasks.interface import Batch
from privacy.one_backward import functional_norms
from privacy.one_backward.functional import _fuller
from privacy.one_backward.functional_norms import split_in_two, sum_of_products
from tests.support.clipped_sums import (
    SHAPES,
    VOCAB,
    clipped,
    distance,
    each_gradient,
    losses_of,
    middle_clip,
    model_of,
    norm_of,
    oracle,
    plain_loss,
    random_batch,
)
from tests.support.functional_sums import summed

RULES = ["flat", "per_layer", "automatic"]


# Equality


@settings(max_examples=30)
@given(
    shape=SHAPES,
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 99),
    count=st.integers(1, 6),
    length=st.integers(2, 12),
)
def test_sums_are_those_of_the_oracle_and_of_the_eager_form(
    shape: dict[str, Any], rule: str, seed: int, count: int, length: int
) -> None:
    model, batch = model_of(**shape), random_batch(seed, count, length)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    if norm_of(oracle(gradients, clip, rule)) < 1e-3:
        return  # every example is shorter than what it is to predict
    found = summed(model, batch, clip=clip, rule=rule)
    assert distance(found, oracle(gradients, clip, rule)) < 1e-5
    assert distance(found, clipped(model, batch, clip=clip, rule=rule)) < 1e-5


def test_the_comparison_rejects_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another clip, a dropped cross term, rows that are not joined, fillers that count."""
    model, batch = model_of(tied=True, bias=True), random_batch(3, 5, 9)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    expected = oracle(gradients, clip)
    assert distance(summed(model, batch, clip=clip), expected) < 1e-5
    assert distance(summed(model, batch, clip=clip * 1.001), expected) > 1e-5
    with monkeypatch.context() as patch:
        patch.setattr(functional_norms, "_cross", lambda x, g, ids, rows: x.new_zeros(len(x)))
        assert distance(summed(model, batch, clip=clip), expected) > 1e-4
    with monkeypatch.context() as patch:
        alone = lambda ids: torch.eye(ids.shape[1]).expand(len(ids), -1, -1) > 0  # noqa: E731
        patch.setattr(functional_norms, "_same_row", alone)
        assert distance(summed(model, batch, clip=clip), expected) > 1e-4
    # five examples are filled up to six by a copy of the first
    assert distance(summed(model, batch, clip=clip), oracle([*gradients, gradients[0]], clip)) > 0.1


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cost", [0, 10**9])
@pytest.mark.parametrize("budget", [0, 10**9])
def test_every_way_to_the_norm_is_exact(
    tied: bool, cost: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gram products, or gradients that are instantiated and kept, or not kept."""
    monkeypatch.setattr(functional_norms, "_COST_OF_MEMORY", cost)
    monkeypatch.setattr(functional_norms, "_BUDGET_BYTES", {"cpu": budget})
    model, batch = model_of(tied=tied, bias=True, position="learned"), random_batch(1, 4, 12)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    assert distance(summed(model, batch, clip=clip), oracle(gradients, clip)) < 1e-5


@pytest.mark.parametrize("tied", [False, True])
def test_adapters_are_clipped_and_nothing_else(tied: bool) -> None:
    model = model_of(tied=tied, bias=True)
    lora = LoraConfig(rank=2, alpha=4.0, targets=("query", "up", "down"))
    add_lora(model, lora, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b.weight"):
                parameter += 0.1
    batch = random_batch(2, 4, 9)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    found = summed(model, batch, clip=clip)
    assert set(found) == set(gradients[0])
    assert distance(found, oracle(gradients, clip)) < 1e-5


def test_frozen_weights_are_left_out_of_norm_and_sum() -> None:
    model, batch = model_of(bias=True, norm="layernorm"), random_batch(0, 4, 6)
    block = model.transformer.blocks[0]
    for frozen in (block.attention.query.weight, block.attention.key.bias, model.head.weight):
        frozen.requires_grad_(False)
    block.attention_norm.weight.requires_grad_(False)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    found = summed(model, batch, clip=clip)
    assert set(found) == set(gradients[0])
    assert distance(found, oracle(gradients, clip)) < 1e-5


def test_layer_norm_without_bias_and_a_batch_as_long_as_its_sequences() -> None:
    model = model_of(norm="layernorm", position="learned", n_token_type=2)
    batch = random_batch(0, 7, 7)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    assert distance(summed(model, batch, clip=clip), oracle(gradients, clip)) < 1e-5


class FourDimensional(nn.Module):
    """Linear and norms over (B, T, 2, C), and a norm over two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 12)
        self.both = nn.LayerNorm((2, 6))
        self.mix = nn.Linear(6, 5)
        self.norm = nn.RMSNorm((2, 5))
        self.head = nn.Linear(10, VOCAB)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        halves = self.both(self.embed(tokens).unflatten(2, (2, 6)))
        logits: Tensor = self.head(self.norm(torch.tanh(self.mix(halves))).flatten(2))
        return logits


def test_more_dimensions_than_three() -> None:
    torch.manual_seed(0)
    model, batch = FourDimensional(), random_batch(0, 4, 6)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    assert distance(summed(model, batch, clip=clip), oracle(gradients, clip)) < 1e-5


# Batches that are filled up


def test_batches_keep_a_shape_and_fillers_add_nothing() -> None:
    model = model_of(bias=True, position="learned")
    batches = [random_batch(4, 5, 5), random_batch(5, 1, 9), random_batch(6, 2, 2)]
    gradients = [one for batch in batches for one in each_gradient(model, batch)]
    clip = middle_clip(gradients)
    empty = random_batch(0, 0, 5)
    shapes: set[torch.Size] = set()

    def noted(model: nn.Module, batch: Batch) -> Tensor:
        shapes.add(batch.tokens.shape)
        return plain_loss(model, batch)

    found = summed(model, empty, *batches, empty, clip=clip, loss=noted)
    assert distance(found, oracle(gradients, clip)) < 1e-5
    assert shapes == {torch.Size((6, 16))}
    assert not any(t.any() for t in summed(model, empty, clip=clip).values())


def test_sizes_grow_by_steps_that_waste_at_most_a_third() -> None:
    sizes = [_fuller(count) for count in range(1, 200)]
    assert sizes[:16] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16, 16, 16, 16]
    assert all(count <= size < 1.5 * count for count, size in enumerate(sizes, start=1))
    assert len(set(sizes)) == 16


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("where", [0, 2])
def test_a_sample_that_is_not_finite_is_masked(bad: float, tied: bool, where: int) -> None:
    """Also the first, of which the fillers are copies."""
    model, batch = model_of(tied=tied, bias=True), random_batch(2, 5, 7)
    poison = torch.ones(5)
    poison[where] = bad

    def poisoned(model: nn.Module, batch: Batch) -> Tensor:
        copies = poison[:1].expand(len(batch) - 5)
        return plain_loss(model, batch) * torch.cat([poison, copies])

    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    rest = [g for i, g in enumerate(gradients) if i != where]
    found = summed(model, batch, clip=clip, loss=poisoned)
    assert distance(found, oracle(rest, clip)) < 1e-5


# Numbers


def test_a_sequence_whose_terms_cancel_is_clipped() -> None:
    """A Gram product in fp32 says next to nothing about what is left of them."""
    generator = torch.Generator().manual_seed(0)
    inputs = 100 * torch.randn(64, 1, 8, generator=generator)
    inputs = inputs + 1e-3 * torch.randn(64, 32, 8, generator=generator)
    outer = 100 * torch.randn(64, 32, 8, generator=generator)
    outer -= outer.mean(dim=1, keepdim=True)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
            return self.linear(inputs[tokens[:, 0]])  # type: ignore[no-any-return]

    model = Whole()
    for one in range(64):
        batch = Batch(torch.tensor([[one]]), torch.ones(1, 1) > 0, torch.zeros(1))
        found = summed(
            model,
            batch,
            clip=0.5,
            loss=lambda m, b: (m(b.tokens, b.attention_mask) * outer[b.tokens[:, 0]]).sum((1, 2)),
        )
        assert norm_of(found) <= 0.5 * (1 + 2**-10)


@settings(max_examples=10)
@given(shape=SHAPES, seed=st.integers(0, 99), length=st.integers(2, 12))
def test_mixed_precision_keeps_to_the_clip_and_to_the_direction(
    shape: dict[str, Any], seed: int, length: int
) -> None:
    # Heads of width 2 have no fused attention kernel, and autocast within the other has a fault.
    model, batch = model_of(**shape, n_embd=16), random_batch(seed, 1, length)
    (whole,) = each_gradient(model, batch)
    if norm_of(whole) < 1e-2:
        return

    def in_bf16(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(batch.tokens, batch.attention_mask)
        return losses_of(logits.float(), batch)

    found = summed(model, batch, clip=1e-3, loss=in_bf16)
    assert all(t.dtype == torch.float32 for t in found.values())
    assert norm_of(found) == pytest.approx(1e-3, rel=2e-4)
    assert distance(found, oracle([whole], 1e-3)) < 0.1
    scaled = summed(model, batch, clip=1e-3, loss=in_bf16, loss_scale=1024)
    assert distance(scaled, found) < 1e-5


def test_two_halves_in_bf16_hold_what_one_fp32_number_holds() -> None:
    wide = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 1e-6
    high, low = split_in_two(wide)
    assert high.dtype == low.dtype == torch.bfloat16
    error = (high.double() + low.double() - wide.double()).abs() / wide.double().abs()
    assert float(error.max()) <= 2**-16
    assert float(((high.double() - wide.double()) / wide.double()).abs().max()) > 2**-9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_products_on_a_gpu_are_those_of_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(3, 64, width, generator=generator).bfloat16() for width in (40, 48))
    factors = torch.rand(3, generator=generator)
    expected = torch.einsum("b,bsp,bsd->pd", factors.double(), g.double(), x.double())
    found = sum_of_products(x.cuda(), g.cuda(), factors.cuda()).cpu().double()
    assert float((found - expected).norm() / expected.norm()) < 2e-5
    gram = functional_norms.product(x.cuda(), x.cuda().mT).cpu().double()
    torch.testing.assert_close(gram, x.double() @ x.double().mT, rtol=1e-5, atol=1e-5)
