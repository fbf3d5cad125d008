"""The loop, its schedule and its optimizers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.errors import ConfigError, TrainingError
from core.tasks.interface import Batch
from core.train import (
    PlainStepper,
    TrainConfig,
    epoch_batches,
    gradient_scale,
    learning_rate,
    make_loss,
    make_optimizer,
    proximal,
    run_steps,
)
from tests.support.tiny import TinyData, TinyModel, TinyTask, train_config

# Configuration


@pytest.mark.parametrize("name", ["steps_per_round", "global_batch_size", "micro_batch_size"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_below_one_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"expected train\.{name} of 1 or more, got {value}"):
        train_config(**{name: value})


@pytest.mark.parametrize(
    "name", ["learning_rate", "momentum", "weight_decay", "warmup_steps", "max_update_norm"]
)
@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_negative_or_infinite_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"train\.{name} finite and not negative, got {value}"):
        train_config(**{name: value})


@pytest.mark.parametrize("name", ["beta1", "beta2"])
@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_betas_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"expected train\.{name} in \[0, 1\), got {value}"):
        train_config(**{name: value})


# Schedule


def rates(total: int, **settings: Any) -> list[float]:
    config = train_config(learning_rate=2.0, **settings)
    return [learning_rate(config, step, total) for step in range(total)]


def test_a_constant_rate_warms_up_linearly_and_stays() -> None:
    assert rates(6, warmup_steps=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert rates(3) == [2.0] * 3


def test_a_cosine_falls_from_the_peak_towards_zero() -> None:
    found = rates(10, schedule="cosine", warmup_steps=2)
    expected = [1.0, 2.0, *(1 + math.cos(math.pi * k / 8) for k in range(8))]
    assert found == pytest.approx(expected)
    assert found == [*found[:2], *sorted(found[2:], reverse=True)]


def test_a_cosine_stays_at_zero_after_its_end_and_bears_a_warm_up_of_the_whole_run() -> None:
    config = train_config(schedule="cosine", warmup_steps=4)
    assert learning_rate(config, 20, 10) == pytest.approx(0.0)
    assert learning_rate(config, 4, 4) == 0.1


# Optimizers


@pytest.mark.parametrize("tied", [False, True])
def test_only_matrices_of_linear_layers_decay(tied: bool) -> None:
    model = TinyModel(tied=tied)
    model.norm.bias.requires_grad_(False)
    optimizer = make_optimizer(model, train_config(weight_decay=0.3))
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    names = {name: decay.get(id(p)) for name, p in model.named_parameters()}
    decaying = {name for name, value in names.items() if value == 0.3}
    assert decaying == ({"mix.weight"} if tied else {"mix.weight", "head.weight"})
    assert names["norm.bias"] is None
    assert all(
        value == 0.0 for name, value in names.items() if name not in {*decaying, "norm.bias"}
    )


def test_the_configured_optimizer_is_made() -> None:
    sgd = make_optimizer(TinyModel(), train_config(momentum=0.7))
    assert isinstance(sgd, torch.optim.SGD)
    assert {group["momentum"] for group in sgd.param_groups} == {0.7}
    adamw = make_optimizer(TinyModel(), train_config(optimizer="adamw", beta1=0.5, beta2=0.6))
    assert isinstance(adamw, torch.optim.AdamW)
    assert {group["betas"] for group in adamw.param_groups} == {(0.5, 0.6)}


# Batches


def batches(
    first_step: int, steps: int, num_examples: int = 10, size: int = 4
) -> list[Sequence[int]]:
    return list(epoch_batches(num_examples, size, first_step=first_step, steps=steps, seed=(1, 2)))


def test_each_pass_is_a_permutation_and_each_batch_is_full() -> None:
    found = batches(0, 10)
    assert all(len(batch) == 4 for batch in found)
    flat = np.array([index for batch in found for index in batch]).reshape(4, 10)
    for one in flat:
        assert sorted(one) == list(range(10))
    assert len({tuple(one) for one in flat}) == 4  # reshuffled


@pytest.mark.parametrize("first_step", [0, 1, 2, 3, 7])
def test_batches_go_on_where_they_stopped(first_step: int) -> None:
    assert batches(first_step, 10 - first_step) == batches(0, 10)[first_step:]


def test_a_batch_may_be_larger_than_the_data() -> None:
    one = batches(0, 1, num_examples=3, size=8)[0]
    assert sorted(one[:3]) == sorted(one[3:6]) == [0, 1, 2]


def test_another_seed_shuffles_otherwise() -> None:
    other = list(epoch_batches(10, 4, first_step=0, steps=10, seed=(1, 3)))
    assert other != batches(0, 10)


def test_no_record_is_refused() -> None:
    with pytest.raises(TrainingError, match="expected 1 record or more to train on, got none"):
        batches(0, 1, num_examples=0)


# The loop


def make(config: TrainConfig, task: TinyTask | None = None, mu: float = 0.0) -> tuple[Any, ...]:
    torch.manual_seed(1)
    model = TinyModel()
    optimizer = make_optimizer(model, config)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    loss = make_loss(task or TinyTask(), autocast=config.autocast)
    return model, optimizer, PlainStepper(model, loss, optimizer, config, proximal(mu, trained))


def run(
    config: TrainConfig, task: TinyTask | None = None, mu: float = 0.0, steps: int = 3
) -> Tensor:
    model, optimizer, stepper = make(config, task, mu)
    data = TinyData.make(8)
    run_steps(
        [range(8)] * steps, data.fetch, stepper, optimizer, config, first_step=0, total_steps=steps
    )
    return weights_of(model)


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().clone().flatten() for p in model.parameters()])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_micro_batches_come_to_one_big_batch(optimizer: str) -> None:
    big, *small = (
        run(train_config(optimizer=optimizer, learning_rate=0.01, micro_batch_size=size))
        for size in (8, 1, 3)
    )
    for one in small:
        torch.testing.assert_close(one, big, rtol=0, atol=2e-6)


def test_a_step_is_plain_gradient_descent_on_the_mean() -> None:
    model, *_ = make(train_config())
    data = TinyData.make(8).fetch(range(8))
    loss = TinyTask().loss_per_example(model(data.tokens, data.attention_mask), data).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected = weights_of(model) - 0.1 * torch.cat([g.flatten() for g in gradients])
    torch.testing.assert_close(run(train_config(), steps=1), expected)


class Recorder:
    """A stepper that only notes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.calls = optimizer, list[Any]()

    def micro_step(self, batch: Batch, *, last: bool) -> None:
        self.calls.append((len(batch), last, self.optimizer.param_groups[0]["lr"]))

    def empty_step(self) -> None:
        self.calls.append("empty")


def test_the_loop_cuts_batches_sets_the_rate_and_passes_empty_batches_on() -> None:
    config = train_config(micro_batch_size=3, learning_rate=1.0, warmup_steps=10)
    optimizer = make_optimizer(TinyModel(), config)
    recorder = Recorder(optimizer)
    steps = run_steps(
        [range(7), [], range(3), [5]],
        TinyData.make(8).fetch,
        recorder,
        optimizer,
        config,
        first_step=4,
        total_steps=20,
    )
    assert steps == 4
    assert recorder.calls == [
        (3, False, 0.5),
        (3, False, 0.5),
        (1, True, 0.5),
        "empty",
        (3, True, 0.7),
        (1, True, 0.8),
    ]


def test_no_batch_is_no_step() -> None:
    config = train_config()
    optimizer = make_optimizer(TinyModel(), config)
    recorder = Recorder(optimizer)
    fetch = TinyData.make(1).fetch
    assert run_steps([], fetch, recorder, optimizer, config, first_step=9, total_steps=20) == 0
    assert recorder.calls == []


def test_an_empty_batch_changes_nothing_without_privacy() -> None:
    model, _, stepper = make(train_config(weight_decay=0.5))
    before = weights_of(model)
    stepper.empty_step()
    assert torch.equal(weights_of(model), before)


class Steep(TinyTask):
    """A loss times a factor."""

    factor = 1.0

    def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
        return super().loss_per_example(logits, batch) * self.factor


def test_what_an_error_left_on_the_model_does_not_reach_the_next_training() -> None:
    config = train_config()
    model, _, stepper = make(config)
    stepper.micro_step(TinyData.make(3, seed=9).fetch(range(3)), last=False)  # and no more
    optimizer = make_optimizer(model, config)
    again = PlainStepper(model, make_loss(TinyTask(), autocast="off"), optimizer, config)
    again.micro_step(TinyData.make(8).fetch(range(8)), last=True)
    torch.testing.assert_close(weights_of(model), run(config, steps=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_gradient_that_is_not_finite_ends_training_and_changes_no_weight(
    factor: float, optimizer: str
) -> None:
    task = Steep()
    task.factor = factor
    model, _, stepper = make(train_config(optimizer=optimizer, max_update_norm=1.0), task)
    before = weights_of(model)
    batch = TinyData.make(3).fetch(range(3))
    stepper.micro_step(batch, last=False)
    with pytest.raises(
        TrainingError, match="finite gradient, got norm (nan|inf)\nhint: lower train"
    ):
        stepper.micro_step(batch, last=True)
    assert torch.equal(weights_of(model), before)


def test_the_gradient_is_clipped_to_max_update_norm() -> None:
    task = Steep()
    task.factor = 1e4
    start = weights_of(make(train_config())[0])
    clipped = run(train_config(max_update_norm=0.3), task, steps=1)
    assert float((clipped - start).norm()) == pytest.approx(0.1 * 0.3, rel=1e-3)
    free = run(train_config(), task, steps=1)
    assert float((free - start).norm()) > 1
    loose = run(train_config(max_update_norm=1e9), task, steps=1)
    torch.testing.assert_close(loose, free)


def test_the_pull_is_towards_the_first_weights_and_beyond_the_clip() -> None:
    """Two steps by hand: the first is not pulled, the second is."""
    mu, config = 2.0, train_config(max_update_norm=1e-6)
    start = weights_of(make(config)[0])
    model, optimizer, stepper = make(config, None, mu)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    data = TinyData.make(8)
    run_steps([range(8)], data.fetch, stepper, optimizer, config, first_step=0, total_steps=1)
    moved = weights_of(model) - (start + 1.0)
    torch.testing.assert_close(moved, torch.full_like(moved, -0.1 * mu), rtol=0, atol=1e-4)


def test_no_pull_without_mu() -> None:
    assert proximal(0.0, list(TinyModel().parameters())) is None


def test_a_parameter_without_a_gradient_is_not_pulled() -> None:
    model = TinyModel()
    pull = proximal(1.0, list(model.parameters()))
    assert pull is not None
    pull.add_to_gradients(list(model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_mixed_precision_computes_in_bf16_and_gives_losses_in_fp32() -> None:
    seen: list[torch.dtype] = []
    model = TinyModel()
    model.head.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    batch = TinyData.make(2).fetch([0, 1])
    for autocast in ("off", "bf16", "fp16"):
        losses = make_loss(TinyTask(), autocast=autocast)(model, batch)
        assert losses.dtype == torch.float32
        assert losses.shape == (2,)
    assert seen == [torch.float32, torch.bfloat16, torch.float16]


def test_the_loss_scale_of_fp16_is_undone_before_the_update() -> None:
    expected = run(train_config(), steps=3)
    found = run(train_config(autocast="fp16", loss_scale=256), steps=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert gradient_scale(train_config(autocast="fp16", loss_scale=256)) == 256
    assert gradient_scale(train_config(autocast="bf16", loss_scale=256)) == 1


def test_small_gradients_are_kept_by_the_loss_scale_and_lost_without() -> None:
    task = Steep()
    task.factor = 1e-7

    def gradient(scale: int) -> Tensor:
        config = train_config(autocast="fp16", loss_scale=scale, learning_rate=1.0)
        model, _, stepper = make(config, task)
        before = weights_of(model)
        stepper.micro_step(TinyData.make(3).fetch(range(3)), last=True)
        return weights_of(model) - before

    assert float(gradient(2**15).norm()) > 2 * float(gradient(1).norm())


def test_a_batch_of_another_size_than_asked_for_is_refused() -> None:
    class Doubled(TinyData):
        def fetch(self, indices: Sequence[int]) -> Batch:
            return super().fetch([*indices, *indices])

    model = TinyModel()
    config = train_config()
    optimizer = make_optimizer(model, config)
    stepper = PlainStepper(model, make_loss(TinyTask(), autocast="off"), optimizer, config)
    data = Doubled.make(4)
    with pytest.raises(TrainingError, match="expected a batch of 3 examples, .* got 6"):
        run_steps([[0, 1, 2]], data.fetch, stepper, optimizer, config, first_step=0, total_steps=1)
