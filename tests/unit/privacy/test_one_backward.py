"""One backward pass against Opacus' hooks and an oracle that takes one example at a time."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.errors import LossContractError, PrivacyError, UnsupportedLayerError
from core.tasks.interface import Batch
from core.train import Loss
from privacy.gradient_modes import GRADIENT_MODES
from privacy.one_backward import clipping, layers
from privacy.one_backward.clipping import add_clipped
from privacy.one_backward.tape import Dense, Lookup, Product
from privacy.optimizers import OneBackwardOptimizer
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
    optimizer_for,
    oracle,
    plain_loss,
    random_batch,
)
from tests.support.private_training import tiny_model
from tests.support.tiny import TinyData, train_config

MODE = GRADIENT_MODES["one_backward"]


# The grid


@settings(max_examples=40)
@given(shape=SHAPES, seed=st.integers(0, 99), count=st.integers(1, 6), length=st.integers(2, 12))
def test_clipped_sums_are_those_of_hooks_and_of_the_oracle(
    shape: dict[str, Any], seed: int, count: int, length: int
) -> None:
    model, batch = model_of(**shape), random_batch(seed, count, length)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    if norm_of(oracle(gradients, clip)) < 1e-3:
        return  # every example is shorter than what it is to predict
    found = clipped(model, batch, clip=clip)
    assert distance(found, oracle(gradients, clip)) < 1e-5
    if shape["bias"] or shape["norm"] == "rmsnorm":  # else Opacus refuses
        assert distance(found, clipped(model, batch, clip=clip, mode="hooks")) < 1e-5


def test_the_comparison_rejects_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dropped cross term, a missing bias, a factor of the batch size, another clip."""
    model, batch = model_of(tied=True, bias=True), random_batch(3, 5, 9)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    expected = oracle(gradients, clip)
    assert distance(clipped(model, batch, clip=clip), expected) < 1e-5
    assert distance(clipped(model, batch, clip=clip * 1.001), expected) > 1e-5
    by_mean: Loss = lambda model, batch: plain_loss(model, batch) / len(batch)  # noqa: E731
    assert distance(clipped(model, batch, clip=clip, loss=by_mean), expected) > 1e-3
    with monkeypatch.context() as patch:
        patch.setattr(clipping, "_cross", lambda product, lookup: product.x.new_zeros(5))
        assert distance(clipped(model, batch, clip=clip), expected) > 1e-4
    small = layers._record_small
    with monkeypatch.context() as patch:
        patch.setattr(layers, "_record_small", lambda t, p, g: small(t, p, g * 0))
        assert distance(clipped(model, batch, clip=clip), expected) > 1e-4


@settings(max_examples=20)
@given(shape=SHAPES, seed=st.integers(0, 99), count=st.integers(2, 5), length=st.integers(2, 12))
def test_an_example_more_or_less_moves_the_sum_by_at_most_the_clip(
    shape: dict[str, Any], seed: int, count: int, length: int
) -> None:
    model, batch = model_of(**shape), random_batch(seed, count, length)
    tight = 1e-2 * (1 - MODE.slack(train_config()))
    longest = int(batch.attention_mask[1:].sum(dim=1).max())  # padding changes as well
    kept = [t[1:, :longest] for t in (batch.tokens, batch.attention_mask)]
    everyone = clipped(model, batch, clip=tight)
    others = clipped(model, Batch(*kept, batch.labels[1:]), clip=tight)
    assert norm_of({n: everyone[n].double() - others[n].double() for n in others}) <= 1e-2


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("always", [True, False])
def test_either_way_to_the_norm_is_exact(
    tied: bool, always: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instantiated wherever it may be, or Gram products throughout."""
    monkeypatch.setattr("privacy.one_backward.tape._COST_OF_MEMORY", 0 if always else 10**9)
    model, batch = model_of(tied=tied, bias=True, position="learned"), random_batch(1, 4, 12)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    assert distance(clipped(model, batch, clip=clip), oracle(gradients, clip)) < 1e-5


def test_instantiated_gradients_keep_to_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privacy.one_backward.tape._COST_OF_MEMORY", 0)
    model, batch = model_of(), random_batch(1, 4, 3)

    def kinds(budget: int) -> set[type]:
        monkeypatch.setattr("privacy.one_backward.tape._BUDGET_BYTES", budget)
        module = MODE.wrap(model, 1.0)
        try:
            module.tape.clear()
            plain_loss(module, batch).sum().backward()
            uses = module.tape.take()
            return {type(use) for p in uses if p.dim() == 2 for use in uses[p]}
        finally:
            module.cleanup()

    assert kinds(0) == {Product, Lookup}  # the tied matrix is never instantiated
    assert kinds(10**6) == {Dense, Product, Lookup}


def test_products_of_many_blocks_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(3, 150, width, generator=generator) for width in (40, 50))
    found, bounds = clipping.squared_norms_of_products(x, g)
    torch.testing.assert_close(found, (g.mT @ x).square().sum((1, 2)), rtol=1e-5, atol=0)
    torch.testing.assert_close(bounds, (x.norm(dim=2) * g.norm(dim=2)).sum(1))


# Numbers


def sum_of(uses: list[Any], shape: tuple[int, int], clip: float) -> Tensor:
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.summed_grad = None  # type: ignore[attr-defined]
    add_clipped({parameter: uses}, [parameter], clip)
    total: Tensor = parameter.summed_grad  # type: ignore[attr-defined]
    return total


def test_uses_that_cancel_out_are_clipped_to_the_clip_all_the_same() -> None:
    """A Gram product in fp32 says next to nothing about what is left of them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, 10, generator=generator)
    g = torch.randn(2, 64, 12, generator=generator)
    x[1, 32:], g[1, 32:] = x[1, :32], -g[1, :32] * (1 + 1e-5)
    total = sum_of([Product(x, g)], (12, 10), 1e-4)
    left = (g[1].double().T @ x[1].double()).norm()
    assert float(left) > 1e-4
    assert float(sum_of([Product(x[1:], g[1:])], (12, 10), 1e-4).norm()) <= 1e-4 * (1 + 2**-10)
    others = sum_of([Product(x[:1], g[:1])], (12, 10), 1e-4)
    assert float((total - others).norm()) <= 1e-4 * (1 + 2**-10)
    assert float((total - others).norm()) > 0.99e-4


def test_a_head_that_undoes_its_embedding_is_clipped_to_the_clip_all_the_same() -> None:
    ids = torch.tensor([[2, 3]])
    x = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0))
    g = F.one_hot(ids, 5).float()
    total = sum_of([Product(x, g), Lookup(ids, -x * (1 - 1e-6))], (5, 4), 1e-7)
    assert float(total.norm()) <= 1e-7 * (1 + 2**-10)


def test_a_matrix_that_is_a_norms_weight_as_well_is_exact() -> None:
    torch.manual_seed(0)
    x, g = torch.randn(3, 4, 5), torch.randn(3, 4, 6)
    ids, rows, dense = torch.randint(0, 6, (3, 2)), torch.randn(3, 2, 5), torch.randn(3, 6, 5)
    whole = g.mT @ x + dense + torch.einsum("btv,btc->bvc", F.one_hot(ids, 6).float(), rows)
    expected = (whole / whole.flatten(1).norm(dim=1)[:, None, None]).sum(0)
    uses = [Product(x[:, :1], g[:, :1]), Product(x[:, 1:], g[:, 1:]), Dense(dense)]
    uses += [Lookup(ids[:, :1], rows[:, :1]), Lookup(ids[:, 1:], rows[:, 1:])]
    without_norm = [use for use in uses if not isinstance(use, Dense)]
    torch.testing.assert_close(sum_of(uses, (6, 5), 1.0), expected)
    whole -= dense
    expected = (whole / whole.flatten(1).norm(dim=1)[:, None, None]).sum(0)
    torch.testing.assert_close(sum_of(without_norm, (6, 5), 1.0), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("tied", [False, True])
def test_a_sample_that_is_not_finite_is_masked(bad: float, tied: bool) -> None:
    model, batch = model_of(tied=tied, bias=True), random_batch(2, 4, 7)

    def poisoned(model: nn.Module, batch: Batch) -> Tensor:
        losses = plain_loss(model, batch)
        return torch.cat([losses[:2], losses[2:3] * bad, losses[3:]])

    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    found = clipped(model, batch, clip=clip, loss=poisoned)
    assert distance(found, oracle([*gradients[:2], gradients[3]], clip)) < 1e-5


@settings(max_examples=15)
@given(shape=SHAPES, seed=st.integers(0, 99), length=st.integers(2, 12))
def test_mixed_precision_keeps_to_the_clip_and_to_the_direction(
    shape: dict[str, Any], seed: int, length: int
) -> None:
    """Norms are in fp32, of the very tensors that are summed."""
    model, batch = model_of(**shape), random_batch(seed, 1, length)
    (whole,) = each_gradient(model, batch)
    if norm_of(whole) < 1e-2:
        return

    def in_bf16(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(batch.tokens, batch.attention_mask)
        return losses_of(logits.float(), batch)

    found = clipped(model, batch, clip=1e-3, loss=in_bf16)
    assert all(t.dtype == torch.float32 for t in found.values())
    assert norm_of(found) == pytest.approx(1e-3, rel=2e-4)
    assert distance(found, oracle([whole], 1e-3)) < 0.1


# Shapes


def test_a_batch_as_long_as_its_sequences() -> None:
    model, batch = model_of(position="learned", n_token_type=2), random_batch(0, 7, 7)
    gradients = each_gradient(model, batch)
    found = clipped(model, batch, clip=middle_clip(gradients))
    assert distance(found, oracle(gradients, middle_clip(gradients))) < 1e-5


@pytest.mark.parametrize("mode", sorted(GRADIENT_MODES))
def test_learned_positions_in_every_mode(mode: str) -> None:
    model = model_of(position="learned", n_token_type=2, bias=True, norm="layernorm", tied=False)
    batch = random_batch(0, 7, 9)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    found = clipped(model, batch, clip=clip, mode=mode)
    assert distance(found, oracle(gradients, clip)) < (5e-3 if mode == "ghost" else 1e-5)


def test_micro_batches_and_empty_ones_add_up() -> None:
    model = model_of(bias=True, position="learned")
    batches = [random_batch(4, 3, 5), random_batch(5, 1, 9), random_batch(6, 2, 2)]
    gradients = [one for batch in batches for one in each_gradient(model, batch)]
    clip = middle_clip(gradients)
    empty = random_batch(0, 0, 5)
    found = clipped(model, empty, *batches, empty, clip=clip)
    assert distance(found, oracle(gradients, clip)) < 1e-5
    assert not any(t.any() for t in clipped(model, empty, clip=clip).values())


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
    assert distance(clipped(model, batch, clip=clip), oracle(gradients, clip)) < 1e-5


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant: bool) -> None:
    model, batch = model_of(bias=True, n_layer=2), random_batch(0, 4, 6)
    gradients = each_gradient(model, batch)
    for block in model.transformer.blocks:
        own = block.forward
        vars(block)["forward"] = lambda *a, own=own: checkpoint(own, *a, use_reentrant=reentrant)
    clip = middle_clip(gradients)
    assert distance(clipped(model, batch, clip=clip), oracle(gradients, clip)) < 1e-5


def test_frozen_weights_are_left_out_of_norm_and_sum() -> None:
    model, batch = model_of(bias=True, norm="layernorm"), random_batch(0, 4, 6)
    block = model.transformer.blocks[0]
    for frozen in (block.attention.query.weight, block.attention.key.bias, model.head.weight):
        frozen.requires_grad_(False)
    block.attention_norm.weight.requires_grad_(False)
    block.feed_forward_norm.requires_grad_(False)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    found = clipped(model, batch, clip=clip)
    assert set(found) == set(gradients[0])
    assert distance(found, oracle(gradients, clip)) < 1e-5


def test_no_ordinary_gradient_is_computed_and_logits_are_the_same() -> None:
    model, batch = model_of(bias=True, norm="layernorm"), random_batch(0, 4, 6)
    expected = model(batch.tokens, batch.attention_mask)
    module = MODE.wrap(model, 1.0)
    found = module(batch.tokens, batch.attention_mask)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert all(p.grad is None for p in model.parameters())
    module.cleanup()
    assert torch.equal(model(batch.tokens, batch.attention_mask), expected)
    assert not any("forward" in vars(layer) for layer in model.modules())
    model(batch.tokens, batch.attention_mask).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_records_are_gone_after_the_step_and_after_the_cleanup() -> None:
    model, batch = model_of(), random_batch(0, 4, 6)
    optimizer, module = optimizer_for(model, 1.0), MODE.wrap(model, 1.0)
    MODE.backward(module, optimizer, plain_loss, batch)
    records = optimizer._records
    assert records
    assert not module.tape.uses
    optimizer.step()
    assert not records
    plain_loss(module, batch).sum().backward()
    assert module.tape.uses
    module.cleanup()
    assert not module.tape.uses


# Refusals


def refuse(
    message: str, act: Callable[[], object], kind: type[PrivacyError] = PrivacyError
) -> None:
    with pytest.raises(kind) as caught:
        act()
    assert str(caught.value).startswith(message)


def test_a_trained_layer_that_cannot_record_is_named() -> None:
    model = tiny_model()
    model.mix = nn.Bilinear(2, 2, 2)
    refuse(
        "expected trained layers of kind Linear, Embedding, LayerNorm, RMSNorm, got mix: Bilinear",
        lambda: MODE.wrap(model, 1.0),
        UnsupportedLayerError,
    )
    refuse(
        "expected a layer that can record, got Bilinear",
        lambda: layers.recording_forward(model.mix, None),  # type: ignore[arg-type]
        UnsupportedLayerError,
    )
    assert not any("forward" in vars(layer) for layer in model.modules())


def test_wrapping_twice_is_refused() -> None:
    model = tiny_model()
    module = MODE.wrap(model, 1.0)
    refuse("expected layers with the forward of their class, got one", lambda: MODE.wrap(model, 1))
    module.cleanup()
    MODE.wrap(model, 1.0).cleanup()


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_layer_norm_without_bias_is_refused_by_opacus_modes_alone(mode: str) -> None:
    model = nn.Sequential(nn.LayerNorm(4, bias=False))
    refuse(
        "expected LayerNorm with a bias under Opacus, got 0: LayerNorm without one\n"
        'hint: set privacy.gradient_mode = "one_backward"',
        lambda: GRADIENT_MODES[mode].check(model, train_config()),
        UnsupportedLayerError,
    )
    MODE.check(model, train_config())
    GRADIENT_MODES[mode].check(model.requires_grad_(False), train_config())
    GRADIENT_MODES[mode].check(nn.LayerNorm(4, elementwise_affine=False), train_config())


class Odd(nn.Module):
    """One Linear used as ``use`` says."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 4)
        self.linear = nn.Linear(4, 4)
        self.use = use

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        return self.use(self, self.embed(tokens)).flatten(1)[:, :3]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda m, x: x, "expected per-sample gradients of linear.weight, got none\nhint: a tr"),
        (lambda m, x: m.linear(m.linear(x)), "expected 1 uses of linear.weight, as often as it is"),
        (
            lambda m, x: m.linear(x) + F.linear(x, m.linear.weight),
            "expected every use of linear.weight to be recorded, got one past its layer\nhint: c",
        ),
        (
            lambda m, x: x + m.linear(torch.ones(1, 4)),
            "expected 3 per-sample gradients of linear.weight, got 1\nhint: every layer must see",
        ),
        (
            lambda m, x: x + m.linear(torch.ones(4)),
            "expected 3 per-sample gradients of linear.weight, got 1\nhint: every layer must see",
        ),
        (
            lambda m, x: m.linear(x.mT.mT.transpose(0, 1)).transpose(0, 1),
            "expected 3 per-sample gradients of linear.weight, got 5\nhint: every layer must see",
        ),
    ],
)
def test_a_layer_that_is_used_in_another_way_is_named(use: Any, message: str) -> None:
    refuse(message, lambda: clipped(Odd(use), random_batch(0, 3, 5), clip=1.0))


def test_a_tied_weight_that_is_used_once_is_named() -> None:
    model = Odd(lambda m, x: m.linear(x))
    model.again = nn.Linear(4, 4)
    model.again.weight = model.linear.weight
    model.again.bias = None
    refuse(
        "expected 2 uses of linear.weight, as often as it is registered, got 1",
        lambda: clipped(model, random_batch(0, 3, 5), clip=1.0),
    )
    model.use = lambda m, x: m.again(torch.tanh(m.linear(x)))
    batch = random_batch(0, 3, 5)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    assert distance(clipped(model, batch, clip=clip), oracle(gradients, clip)) < 1e-5


def test_a_parameter_that_is_thawed_after_wrapping_is_refused() -> None:
    model, batch = tiny_model(), TinyData.make(2).fetch([0, 1])
    model.mix.requires_grad_(False)
    module = MODE.wrap(model, 1.0)
    model.mix.requires_grad_(True)
    refuse(
        "expected parameters that were trained when the model was wrapped, got another",
        lambda: MODE.backward(module, optimizer_for(model, 1.0), plain_loss, batch),
    )
    module.cleanup()


def test_steps_and_backward_passes_take_turns() -> None:
    model, batch = tiny_model(), TinyData.make(2).fetch([0, 1])
    optimizer, module = optimizer_for(model, 1.0), MODE.wrap(model, 1.0)
    refuse("expected a backward pass before each step, got a step without one", optimizer.step)
    MODE.backward(module, optimizer, plain_loss, batch)
    refuse(
        "expected a step after each backward pass, got a second backward pass\nhint: gradients",
        lambda: MODE.backward(module, optimizer, plain_loss, batch),
    )
    optimizer.step()
    refuse("expected a backward pass before each step, got a step without one", optimizer.step)
    module.cleanup()


def test_a_reduced_loss_and_the_optimizer_of_another_mode_are_refused() -> None:
    model, batch = tiny_model(), TinyData.make(2).fetch([0, 1])
    refuse(
        "expected one loss per example, shape (2,), got ()",
        lambda: clipped(model, batch, clip=1.0, loss=lambda m, b: plain_loss(m, b).sum()),
        LossContractError,
    )
    refuse(
        "expected the optimizer of this gradient mode, got HooksOptimizer",
        lambda: MODE.empty(optimizer_for(model, 1.0, "hooks")),
    )
    assert isinstance(optimizer_for(model, 1.0), OneBackwardOptimizer)
