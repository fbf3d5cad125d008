"""Clipped sums against an oracle that takes one example at a time, in every mode."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from core.errors import LossContractError, PrivacyError, UnsupportedLayerError
from core.tasks.interface import Batch
from core.train import make_loss, make_optimizer
from privacy.gradient_modes import GRADIENT_MODES
from privacy.random_source import RandomSource
from privacy.rehearsal import forget_gradients
from tests.support.tiny import TinyData, TinyModel, TinyTask, train_config

CLIP = 0.5
MODES = sorted(GRADIENT_MODES)
SHAPES = [
    pytest.param({"rms": True}, id="lm-rms"),
    pytest.param({}, id="lm-layernorm"),
    pytest.param({"classes": 2}, id="classifier"),
    pytest.param({"tied": True}, id="lm-tied"),
]


def clipped_sum(
    mode_name: str, model: nn.Module, batches: list[Batch], task: TinyTask | None = None
) -> dict[str, torch.Tensor]:
    """The sum that the optimizer would noise after one step of several micro-batches."""
    mode = GRADIENT_MODES[mode_name]
    config = train_config()
    mode.check(model, config)
    optimizer = mode.optimizer_class(
        make_optimizer(model, config),
        noise_multiplier=1.0,
        max_grad_norm=CLIP * (1 - mode.slack(config)),
        sensitivity=CLIP,
        expected_batch_size=1,
        noise=RandomSource.fresh().stream("noise"),
        pull=None,
    )
    module = mode.wrap(model, CLIP * (1 - mode.slack(config)))
    loss = make_loss(task or TinyTask(), autocast="off")
    for batch in batches:
        mode.backward(module, optimizer, loss, batch)
        optimizer.signal_skip_step(do_skip=True)
        optimizer.step()
        optimizer.zero_grad()
    sums = {name: p.summed_grad.clone().view_as(p) for name, p in model.named_parameters()}
    module.cleanup()
    return sums


def oracle(
    model: nn.Module, batches: list[Batch], *, clip: float = CLIP
) -> dict[str, torch.Tensor]:
    """Each example alone in double precision; an example without a finite gradient adds nothing."""
    precise = TinyModel(
        tied=model.head.weight is model.embed.weight,
        rms=isinstance(model.norm, nn.RMSNorm),
        classes=model.classes,
    ).double()
    precise.load_state_dict(model.state_dict())
    total = {name: torch.zeros_like(p) for name, p in precise.named_parameters()}
    for batch in batches:
        for i in range(len(batch)):
            one = Batch(*(t[i : i + 1] for t in (batch.tokens, batch.attention_mask, batch.labels)))
            precise.zero_grad()
            logits = precise(one.tokens, one.attention_mask)
            TinyTask().loss_per_example(logits, one).sum().backward()
            gradients = {name: p.grad for name, p in precise.named_parameters()}
            norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
            if math.isfinite(norm):
                for name, gradient in gradients.items():
                    total[name] += gradient * min(1.0, clip / norm)
    return total


def distance(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Relative L2 distance of two gradients."""
    gap = sum((left[n].double() - right[n].double()).square().sum().item() for n in right)
    return math.sqrt(gap / sum(g.double().square().sum().item() for g in right.values()))


def batches(model_seed: int = 0) -> list[Batch]:
    data = TinyData.make(11, seed=model_seed)
    return [data.fetch(range(5)), data.fetch(range(5, 6)), data.fetch(range(6, 11))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_clipped_sum_equals_the_oracle(mode: str, shape: dict[str, Any]) -> None:
    torch.manual_seed(3)
    model = TinyModel(**shape)
    if mode == "ghost" and shape.get("tied"):
        with pytest.raises(UnsupportedLayerError, match="untied weights"):
            clipped_sum(mode, model, batches())
        return
    found = clipped_sum(mode, model, batches())
    tolerance = 2 * GRADIENT_MODES[mode].slack(train_config())
    assert distance(found, oracle(model, batches())) < tolerance
    # the comparison must be able to fail: another clip, a lost micro-batch, a lost bias
    assert distance(found, oracle(model, batches(), clip=CLIP * 1.01)) > tolerance
    assert distance(found, oracle(model, batches()[:-1])) > tolerance
    without_bias = {**found, "mix.bias": torch.zeros_like(found["mix.bias"])}
    assert distance(without_bias, oracle(model, batches())) > tolerance


@pytest.mark.parametrize("mode", MODES)
def test_batch_as_long_as_its_sequences(mode: str) -> None:
    """Position ids of shape (T,) give wrong gradients silently where B == T."""
    data = TinyData.make(6, fixed_length=6)
    model = TinyModel()
    found = clipped_sum(mode, model, [data.fetch(range(6))])
    assert distance(found, oracle(model, [data.fetch(range(6))])) < 3e-3


@pytest.mark.parametrize("mode", MODES)
def test_one_example_moves_the_sum_by_at_most_the_clip(mode: str) -> None:
    model = TinyModel()
    with torch.no_grad():
        model.head.weight.mul_(50)  # every gradient is far above the clip
    data = TinyData.make(9)
    for gone in range(9):
        rest = [index for index in range(9) if index != gone]
        everyone = clipped_sum(mode, model, [data.fetch(range(9))])
        others = clipped_sum(mode, model, [data.fetch(rest)])
        moved = math.sqrt(sum((everyone[n] - others[n]).square().sum().item() for n in everyone))
        assert CLIP * 0.99 < moved <= CLIP


class PoisonedTask(TinyTask):
    """One example's loss has an infinite gradient."""

    def loss_per_example(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        losses = super().loss_per_example(logits, batch)
        poison = (batch.tokens[:, 0] == 16) & (batch.tokens[:, 1] == 16)
        return torch.stack(
            [one * math.inf if bad else one for one, bad in zip(losses, poison, strict=True)]
        )


@pytest.mark.parametrize("mode", MODES)
def test_an_example_without_a_finite_gradient_adds_nothing(mode: str) -> None:
    model = TinyModel()
    data = TinyData.make(4, fixed_length=4)
    poisoned = data.fetch(range(4))
    poisoned.tokens[2, :2] = 16
    found = clipped_sum(mode, model, [poisoned], PoisonedTask())
    assert distance(found, oracle(model, [data.fetch([0, 1, 3])])) < 3e-3


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_of_nothing_but_non_finite_examples_is_an_empty_one(mode: str) -> None:
    poisoned = TinyData.make(1, fixed_length=4).fetch([0])
    poisoned.tokens[:, :2] = 16
    found = clipped_sum(mode, TinyModel(), [poisoned], PoisonedTask())
    assert all(not total.any() for total in found.values())


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_left_out_of_the_loss_is_named(mode: str) -> None:
    model = TinyModel()
    model.forgotten = nn.Linear(2, 2)
    with pytest.raises(PrivacyError, match=r"per-sample gradients of (_module\.)?forgotten"):
        clipped_sum(mode, model, [TinyData.make(2).fetch([0, 1])])


@pytest.mark.parametrize("mode", MODES)
def test_a_reduced_loss_is_refused(mode: str) -> None:
    class Reduced(TinyTask):
        def loss_per_example(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            return super().loss_per_example(logits, batch).mean()

    with pytest.raises(LossContractError, match="one loss per example"):
        clipped_sum(mode, TinyModel(), [TinyData.make(2).fetch([0, 1])], Reduced())


@pytest.mark.parametrize("mode_name", MODES)
def test_a_sequence_whose_terms_cancel_is_clipped(mode_name: str) -> None:
    """Its norm by Gram products is rounding alone, and may come out as 0: a factor of 1."""
    generator = torch.Generator().manual_seed(5)
    normal = partial(torch.randn, generator=generator)
    inputs = (100 * normal(64, 1, 8) + 1e-3 * normal(64, 32, 8)).requires_grad_()
    outer = 100 * normal(64, 32, 8)
    outer -= outer.mean(dim=1, keepdim=True)
    mode, model, config = GRADIENT_MODES[mode_name], nn.Sequential(nn.Linear(8, 8)), train_config()
    for one in range(64):
        optimizer = mode.optimizer_class(
            make_optimizer(model, config),
            noise_multiplier=1.0,
            max_grad_norm=CLIP * (1 - mode.slack(config)),
            sensitivity=CLIP,
            expected_batch_size=1,
            noise=RandomSource.fresh().stream("noise"),
            pull=None,
        )
        module = mode.wrap(model, CLIP * (1 - mode.slack(config)))

        def loss(module: nn.Module, batch: Batch, one: int = one) -> torch.Tensor:
            return (module(inputs[one : one + 1]) * outer[one]).sum(dim=(1, 2))

        mode.backward(module, optimizer, loss, TinyData.make(1).fetch([0]))
        optimizer.signal_skip_step(do_skip=True)
        optimizer.step()
        total = sum(p.summed_grad.double().square().sum().item() for p in model.parameters())
        forget_gradients(module, model)
        assert math.sqrt(total) <= CLIP
