"""Layers that a user adds to one backward pass, as Opacus' users add them to hooks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample.conv import compute_conv_grad_sample
from opacus.grad_sample.group_norm import compute_group_norm_grad_sample
from torch import Tensor, nn

from core.errors import PrivacyError, UnsupportedLayerError
from core.tasks.interface import Batch
from privacy.gradient_modes import GRADIENT_MODES
from privacy.one_backward.samplers import SAMPLERS, register_sampler
from privacy.one_backward.tape import Lookup, Product, Use
from tests.support.clipped_sums import (
    VOCAB,
    clipped,
    distance,
    each_gradient,
    middle_clip,
    norm_of,
    oracle,
    random_batch,
)
from tests.support.private_training import flat, plan_of, tiny_model, train
from tests.support.tiny import TinyData, train_config


class ScaleAndShift(nn.Module):
    """Parameters under names of its own, and two inputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(width))
        self.shift = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(x) * self.scale + y + self.shift


def compute_scale_and_shift(
    layer: ScaleAndShift, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    of_scale = (torch.tanh(activations[0]) * backprops).sum(dim=1)
    return {layer.scale: of_scale, layer.shift: backprops.sum(dim=1)}


class Table(nn.Module):
    """An Embedding by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(VOCAB, width))

    def forward(self, ids: Tensor) -> Tensor:
        return self.matrix[ids]


def compute_table(
    layer: Table, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Use]:
    return {layer.matrix: Lookup(activations[0], backprops)}


class Mixed(nn.Module):
    """Built-in layers and registered ones."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(6)
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.group = nn.GroupNorm(2, 8)
        self.mix = nn.Linear(8, 8)
        self.both = ScaleAndShift(8)
        self.head = nn.Linear(8, VOCAB)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        hidden = self.group(self.conv(self.table(tokens).mT)).mT
        logits: Tensor = self.head(self.both(hidden, self.mix(hidden)))
        return logits


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Registers all of them, and forgets them again."""
    before = dict(SAMPLERS)
    register_sampler(nn.Conv1d)(compute_conv_grad_sample)
    register_sampler([nn.GroupNorm])(compute_group_norm_grad_sample)
    register_sampler(ScaleAndShift)(compute_scale_and_shift)
    register_sampler(Table)(compute_table)
    yield
    SAMPLERS.clear()
    SAMPLERS.update(before)


def mixed(seed: int = 0) -> Mixed:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Mixed()


@pytest.mark.parametrize("rule", ["flat", "per_layer", "automatic"])
@pytest.mark.parametrize("frozen", ["", "conv.weight", "both.scale", "table.matrix"])
def test_clipped_sums_are_those_of_the_oracle(rule: str, frozen: str) -> None:
    model, batch = mixed(), random_batch(3, 5, 7)
    if frozen:
        model.get_parameter(frozen).requires_grad_(False)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    found = clipped(model, batch, clip=clip, rule=rule)
    assert distance(found, oracle(gradients, clip, rule)) < 1e-5
    assert set(found) == set(dict(model.named_parameters())) - {frozen}
    assert distance(found, oracle(gradients, clip * 1.001, rule)) > 1e-5


@settings(max_examples=20)
@given(seed=st.integers(0, 99), count=st.integers(2, 5), length=st.integers(2, 9))
def test_an_example_more_or_less_moves_the_sum_by_at_most_the_clip(
    seed: int, count: int, length: int
) -> None:
    model, batch = mixed(seed), random_batch(seed, count, length)
    tight = 1e-2 * (1 - GRADIENT_MODES["one_backward"].slack(train_config()))
    others = Batch(batch.tokens[1:], batch.attention_mask[1:], batch.labels[1:])
    left, right = (clipped(model, one, clip=tight) for one in (batch, others))
    assert norm_of({n: left[n].double() - right[n].double() for n in left}) <= 1e-2


def test_the_layers_compute_what_they_did_and_forget_it() -> None:
    model, batch = mixed(), random_batch(3, 2, 5)
    expected = model(batch.tokens, batch.attention_mask)
    module = GRADIENT_MODES["one_backward"].wrap(model, 1.0)
    found = module(batch.tokens, batch.attention_mask)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert all(p.grad is None for p in model.parameters())
    module.cleanup()
    assert not any("forward" in vars(layer) for layer in model.modules())
    model(batch.tokens, batch.attention_mask).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def with_scale() -> nn.Module:
    model = tiny_model()
    mix = model.mix

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.both = mix, ScaleAndShift(6)

        def forward(self, x: Tensor) -> Tensor:
            both: Tensor = self.both(self.mix(x), x)
            return both

    model.mix = Block()  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("autocast", ["off", "bf16", "fp16"])
def test_training_takes_them(autocast: Any) -> None:
    model = with_scale()
    before = flat(model)
    plan = plan_of(gradient_mode="one_backward")
    config = train_config(autocast=autocast, micro_batch_size=1 if autocast == "fp16" else 3)
    train(model, TinyData.make(12), plan, config=config)
    assert not torch.equal(flat(model), before)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_the_other_modes_refuse_them_by_name(mode: str) -> None:
    with pytest.raises(
        UnsupportedLayerError,
        match="of kind Linear, Embedding, LayerNorm, RMSNorm, got mix.both: ScaleAndShift; its tr",
    ):
        train(with_scale(), TinyData.make(4), plan_of(gradient_mode=mode))


def test_a_kind_that_nobody_registered_is_refused_by_name() -> None:
    del SAMPLERS[ScaleAndShift]
    with pytest.raises(
        UnsupportedLayerError,
        match="RMSNorm, Conv1d, GroupNorm, Table, got mix.both: ScaleAndShift; its trained .*\n"
        "hint: freeze the layer .* privacy.one_backward.samplers adds kinds",
    ):
        train(with_scale(), TinyData.make(4), plan_of(gradient_mode="one_backward"))


class ScaleOfTheirOwn(ScaleAndShift):
    """A subclass may compute anything."""


def test_a_subclass_is_another_kind() -> None:
    model = with_scale()
    model.mix.both = ScaleOfTheirOwn(6)
    with pytest.raises(UnsupportedLayerError, match="got mix.both: ScaleOfTheirOwn"):
        GRADIENT_MODES["one_backward"].wrap(model, 1.0)


@pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding])
def test_built_in_kinds_are_not_replaced(kind: type[nn.Module]) -> None:
    with pytest.raises(UnsupportedLayerError, match="expected a kind of layer that is not built i"):
        register_sampler(kind)
    with pytest.raises(UnsupportedLayerError, match="not built in, got RMSNorm"):
        register_sampler([nn.Conv2d, nn.RMSNorm])
    assert nn.Conv2d not in SAMPLERS


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm])
def test_a_batch_norm_is_not_registered(kind: type[nn.Module]) -> None:
    with pytest.raises(UnsupportedLayerError, match=f"{kind.__name__}; it mixes the examples of a"):
        register_sampler(kind)


Gives = Callable[[Any, list[Tensor], Tensor], Any]
WRONG: list[tuple[Gives, str]] = [
    (lambda m, a, g: {m.scale: g.sum(1)}, "expected per-sample gradients of both.shift, got none"),
    (lambda m, a, g: {m.scale: g, m.shift: g.sum(1)}, "gradients of ScaleAndShift.scale, of shape"),
    (lambda m, a, g: {m.scale: g.sum(1)[:1], m.shift: g.sum(1)}, "expected 3 per-sample gradients"),
    (lambda m, a, g: {m.scale: Product(g, g), m.shift: g.sum(1)}, "of shape (B, 8), got others"),
    (lambda m, a, g: {m.scale: Lookup(g, g), m.shift: g.sum(1)}, "of shape (B, 8), got others"),
    (lambda m, a, g: {nn.Parameter(g): g}, "of parameters of ScaleAndShift, got another's"),
]


@pytest.mark.parametrize(("gives", "message"), WRONG)
def test_a_sampler_that_gives_something_else_is_refused(gives: Gives, message: str) -> None:
    register_sampler(ScaleAndShift)(gives)
    with pytest.raises(PrivacyError) as caught:
        clipped(mixed(), random_batch(0, 3, 5), clip=1.0)
    assert message in str(caught.value)


@pytest.mark.parametrize("factor", [0.0, 2.0, -1.0])
def test_a_sampler_that_is_wrong_is_found_by_the_rehearsal(factor: float) -> None:
    def wrong(layer: Any, activations: list[Tensor], backprops: Tensor) -> Any:
        right = compute_scale_and_shift(layer, activations, backprops)
        return {**right, layer.scale: right[layer.scale] * factor}

    register_sampler(ScaleAndShift)(wrong)
    model = with_scale()
    before = flat(model)
    with pytest.raises(UnsupportedLayerError, match="clipped gradient of a made-up text to be aut"):
        train(model, TinyData.make(4), plan_of(gradient_mode="one_backward"))
    assert torch.equal(flat(model), before)


class Odd(Mixed):
    """A registered layer in another use."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.use = use

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.mix(self.group(self.conv(self.table(tokens).mT)).mT)
        logits: Tensor = self.head(self.use(self.both, hidden))
        return logits


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda both, x: both(both(x, x), x), "expected 1 uses of both.scale, as often as it is"),
        (lambda both, x: x, "expected per-sample gradients of both.scale, got none"),
        (
            lambda both, x: both(x, x) + both.shift,
            "expected every use of both.shift to be rec",
        ),
        (lambda both, x: both(x.mT.mT.transpose(0, 1), x.transpose(0, 1)).transpose(0, 1), "got 5"),
        (lambda both, x: both(x, 1.0), "expected tensors as inputs of ScaleAndShift"),
    ],
)
def test_a_layer_that_is_used_in_another_way_is_named(use: Any, message: str) -> None:
    with pytest.raises(PrivacyError) as caught:
        clipped(Odd(use), random_batch(0, 3, 5), clip=1.0)
    assert message in str(caught.value)


def test_a_layer_with_two_outputs_is_refused() -> None:
    class Two(ScaleAndShift):
        def forward(self, x: Tensor, y: Tensor) -> Any:
            return super().forward(x, y), y

    register_sampler(Two)(compute_scale_and_shift)
    model = Odd(lambda both, x: both(x, x)[0])
    model.both = Two(8)
    with pytest.raises(UnsupportedLayerError, match="expected one tensor as output of Two, got tu"):
        clipped(model, random_batch(0, 3, 5), clip=1.0)
