"""Short private trainings, and what they must come to by the naivest computation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.tasks.interface import Batch
from core.train import TrainConfig, gradient_scale, make_loss, make_optimizer
from privacy.discrete_gaussian_grid import GridNoise
from privacy.dp_sgd import DpSgdPlan, PrivateData, train_privately
from privacy.gradient_modes import GRADIENT_MODES
from privacy.random_source import RandomSource
from tests.support.tiny import TinyData, TinyModel, TinyTask, train_config

KEY = bytes(range(32))


def plan_of(**changes: Any) -> DpSgdPlan:
    """A few steps over some of at most 5000 records."""
    settings: dict[str, Any] = {
        "noise_multiplier": 0.8,
        "max_grad_norm": 0.5,
        "sample_rate": 0.4,
        "expected_batch_size": 8,
        "max_batch_size": 50,
        "max_examples": 5000,
        "steps": 4,
        "gradient_mode": "hooks",
    }
    return DpSgdPlan(**settings | changes)


def known_source(context: str = "a test") -> RandomSource:
    """The same streams every time."""
    return RandomSource.for_tests(KEY, context)


def tiny_model(seed: int = 3, **shape: Any) -> TinyModel:
    """The same weights every time, whatever was drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyModel(**shape)


def flat(model: nn.Module) -> Tensor:
    """All weights, as a copy."""
    return torch.cat([p.detach().clone().reshape(-1) for p in model.parameters()])


def train(
    model: nn.Module,
    data: PrivateData,
    plan: DpSgdPlan,
    *,
    task: TinyTask | None = None,
    source: RandomSource | None = None,
    config: TrainConfig | None = None,
    proximal_mu: float = 0.0,
    executed: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Weights after private training under the test key, as one vector."""
    train_privately(
        model,
        task or TinyTask(),
        data,
        plan=plan,
        config=config or train_config(),
        source=source or known_source(),
        first_step=0,
        total_steps=plan.steps,
        proximal_mu=proximal_mu,
        executed=executed,
    )
    return flat(model)


class Watched:
    """Data that notes the model's weights whenever a batch is fetched."""

    def __init__(self, model: nn.Module, count: int, *, fail_at: int | None = None) -> None:
        self.data, self.model, self.fail_at = TinyData.make(count), model, fail_at
        self.weights: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self, indices: Sequence[int]) -> Batch:
        """The examples; fails at the chosen call."""
        self.weights.append(flat(self.model))
        if len(self.weights) == self.fail_at:
            raise OSError("the disk is gone")
        return self.data.fetch(indices)


class SilentTask(TinyTask):
    """Every loss is 0, and so is every gradient: what is released is noise."""

    def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
        """Zeros that the weights took part in."""
        return super().loss_per_example(logits, batch) * 0


class PoisonedTask(TinyTask):
    """Examples that begin with two tokens 16 have an infinite loss."""

    def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
        """Infinite where poisoned."""
        losses = super().loss_per_example(logits, batch)
        poison = (batch.tokens[:, 0] == 16) & (batch.tokens[:, 1] == 16)
        return torch.stack(
            [one * math.inf if bad else one for one, bad in zip(losses, poison, strict=True)]
        )


def naive_trajectory(
    model: TinyModel, data: PrivateData, plan: DpSgdPlan, task: TinyTask, config: TrainConfig
) -> Tensor:
    """DP-SGD by hand, example by example in double precision, with the test key's noise."""
    source = known_source()
    noise, sampling = source.stream("noise"), source.stream("sampling")
    clip = plan.max_grad_norm * (1 - GRADIENT_MODES[plan.gradient_mode].slack(config))
    model = model.double()
    optimizer = make_optimizer(model, config)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    dimension = sum(p.numel() for p in parameters)
    grid = GridNoise(
        noise_multiplier=plan.noise_multiplier,
        sensitivity=plan.max_grad_norm,
        dimension=dimension,
    )
    for _ in range(plan.steps):
        sums = [torch.zeros_like(p) for p in parameters]
        for index in sampling.bernoulli(len(data), plan.sample_rate).tolist():
            gradients = _gradient(model, data.fetch([index]), task, parameters)
            norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
            if math.isfinite(norm):
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient * min(1.0, clip / (norm + 1e-6))
        drawn = torch.zeros(dimension)
        grid.add_([drawn], noise)
        parts = drawn.split([p.numel() for p in parameters])
        for parameter, total, part in zip(parameters, sums, parts, strict=True):
            parameter.grad = (total + part.view_as(total)) / plan.expected_batch_size
        optimizer.step()
    return flat(model)


def _gradient(
    model: nn.Module, one: Batch, task: TinyTask, parameters: Sequence[nn.Parameter]
) -> list[Tensor]:
    logits = model(one.tokens, one.attention_mask)
    return list(torch.autograd.grad(task.loss_per_example(logits, one).sum(), parameters))


def clipped_sum(
    mode_name: str,
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    clip: float,
    autocast: str = "off",
    task: TinyTask | None = None,
) -> Tensor:
    """The sum over micro-batches that noise would be added to, as one vector."""
    config = train_config(autocast=autocast, micro_batch_size=1)
    mode = GRADIENT_MODES[mode_name]
    loss = make_loss(task or TinyTask(), autocast=autocast)
    mode.check(model, config)
    tight = clip * (1 - mode.slack(config))
    optimizer = mode.optimizer_class(
        torch.optim.SGD(model.parameters(), lr=0.0),
        noise_multiplier=1.0,
        max_grad_norm=tight,
        sensitivity=clip,
        expected_batch_size=1,
        noise=known_source().stream("noise"),
        pull=None,
        loss_scale=gradient_scale(config),
    )
    module = mode.wrap(model, tight)
    if not batches:
        mode.empty(optimizer)
        _sum_only(optimizer)
    for batch in batches:
        mode.backward(module, optimizer, loss, batch)
        _sum_only(optimizer)
    total = torch.cat([p.summed_grad.reshape(-1) for p in model.parameters()])
    module.cleanup()
    return total


def _sum_only(optimizer: Any) -> None:
    optimizer.signal_skip_step(do_skip=True)
    optimizer.step()
    optimizer.zero_grad()
