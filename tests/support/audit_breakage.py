"""The private training of the project, broken in one place: by replacing real parts of it.

Each is a ``Mechanism`` for the audit's tests. Everything but the named part is the real thing; the
program's own rehearsal of clipping, which refuses most of these, is off where it must be.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.utils.data import DataLoader

import privacy.dp_sgd
import privacy.one_backward.clipping
import privacy.optimizers
from audit.conformance.mechanism import Mechanism
from core.train import TrainConfig, epoch_batches, make_loss, make_optimizer
from privacy.clipping_rules import clipping_factors
from privacy.discrete_gaussian_grid import GridNoise
from privacy.dp_sgd import DpSgdPlan, PrivateData, train_privately
from privacy.optimizers import CalibratedNoise
from privacy.random_source import RandomSource, RandomStream
from privacy.sampling import TruncatedPoissonSampler

Patch = tuple[object, str, Any]


def broken(patches: Callable[[DpSgdPlan], Sequence[Patch]]) -> Mechanism:
    """The real training while some of its parts are others."""

    def train(model: nn.Module, task: Any, data: Any, *, plan: DpSgdPlan, **settings: Any) -> int:
        with ExitStack() as stack:
            for owner, name, value in patches(plan):
                stack.enter_context(mock.patch.object(owner, name, value))
            return train_privately(model, task, data, plan=plan, **settings)

    return Mechanism(train=train)


def scaled_noise(factor: Callable[[DpSgdPlan], float]) -> Mechanism:
    """Noise times a factor."""

    def patches(plan: DpSgdPlan) -> list[Patch]:
        def grid(*, noise_multiplier: float, **settings: Any) -> GridNoise:
            return GridNoise(noise_multiplier=noise_multiplier * factor(plan), **settings)

        return [(privacy.optimizers, "GridNoise", grid)]

    return broken(patches)


def no_noise() -> Mechanism:
    """Sums go out as they are."""
    silent = lambda self, sums, stream: None  # noqa: E731
    return broken(lambda plan: [(GridNoise, "add_", silent)])


def cached_noise() -> Mechanism:
    """The first step's noise in every step."""

    def patches(plan: DpSgdPlan) -> list[Patch]:
        kept: list[list[Tensor]] = []

        def add(self: GridNoise, sums: Sequence[Tensor], stream: RandomStream) -> None:
            if not kept:
                kept.append([torch.zeros_like(one) for one in sums])
                _ADD(self, kept[0], stream)
            for one, noise in zip(sums, kept[0], strict=True):
                one += noise

        return [(GridNoise, "add_", add)]

    return broken(patches)


def uniform_noise() -> Mechanism:
    """Of the right deviation and the wrong law."""

    def patches(plan: DpSgdPlan) -> list[Patch]:
        width = plan.noise_multiplier * plan.max_grad_norm * math.sqrt(3)

        def add(self: GridNoise, sums: Sequence[Tensor], stream: RandomStream) -> None:
            for one in sums:
                words = torch.from_numpy((stream.words(len(one)) >> 11).astype("int64"))
                one += ((words.double() / 2**53) * 2 - 1).float() * width

        return [(GridNoise, "add_", add)]

    return broken(patches)


def without_noise_on(layer: str) -> Mechanism:
    """One parameter's sums go out as they are."""

    def train(model: nn.Module, task: Any, data: Any, **settings: Any) -> int:
        bare = {id(p) for name, p in model.named_parameters() if layer in name}

        def add_noise(self: CalibratedNoise) -> None:
            _ADD_NOISE(self)
            for parameter in self.params:
                if id(parameter) in bare:
                    parameter.grad.zero_()

        with mock.patch.object(CalibratedNoise, "add_noise", add_noise):
            return train_privately(model, task, data, **settings)

    return Mechanism(train=train)


def clip_times(factor: float) -> Mechanism:
    """Each example is clipped to so many times the clip; infinite for no clipping."""

    def factors(rule: str, squares: Tensor, clip: float) -> tuple[Tensor, Tensor]:
        found, finite = clipping_factors(rule, squares, clip * min(factor, 1e9))
        return found, finite

    return broken(lambda plan: _clipping(factors))


def batch_clip() -> Mechanism:
    """The sum of a batch is clipped in place of each example's gradient."""

    def factors(rule: str, squares: Tensor, clip: float) -> tuple[Tensor, Tensor]:
        return clipping_factors(rule, squares, 1e9)

    def add_noise(self: CalibratedNoise) -> None:
        square = sum(float(p.summed_grad.square().sum()) for p in self.params)
        for parameter in self.params:
            parameter.summed_grad *= min(1.0, self.max_grad_norm / (math.sqrt(square) + 1e-12))
        _ADD_NOISE(self)

    return broken(lambda plan: [*_clipping(factors), (CalibratedNoise, "add_noise", add_noise)])


def one_seed() -> Mechanism:
    """Every site and round draws from the same key."""
    return Mechanism(source=lambda: RandomSource.for_tests(bytes(range(32)), "all sites"))


def sampled_at(factor: float) -> Mechanism:
    """Records are drawn at another rate than is charged."""

    def patches(plan: DpSgdPlan) -> list[Patch]:
        def sampler(*, sample_rate: float, **settings: Any) -> TruncatedPoissonSampler:
            return TruncatedPoissonSampler(sample_rate=min(1.0, sample_rate * factor), **settings)

        return [(privacy.dp_sgd, "TruncatedPoissonSampler", sampler)]

    return broken(patches)


class Shuffled(TruncatedPoissonSampler):
    """Deals the records out, pass by pass, in batches of one size."""

    def __iter__(self) -> Iterator[list[int]]:
        size = max(1, round(self.num_samples * self.sample_rate))
        seed = self._stream.words(4).tolist()
        batches = epoch_batches(self.num_samples, size, first_step=0, steps=self.steps, seed=seed)
        return (list(batch) for batch in batches)


def shuffled() -> Mechanism:
    """Shuffling, accounted for as if each record had a coin of its own."""
    return broken(lambda plan: [(privacy.dp_sgd, "TruncatedPoissonSampler", Shuffled)])


def more_steps() -> Mechanism:
    """Half as many steps again as are charged."""

    def train(model: nn.Module, task: Any, data: Any, *, plan: DpSgdPlan, **settings: Any) -> int:
        more = replace(plan, steps=plan.steps + max(1, plan.steps // 2))
        return train_privately(model, task, data, plan=more, **settings)

    return Mechanism(train=train)


class _Indices:
    """Indices as a data set, so that Opacus may sample them."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([index])


def opacus_engine() -> Mechanism:
    """Opacus as its tutorial has it: rate, denominator and steps follow the number of records.

    Issues 571 and 819 of pytorch/opacus.
    """

    def train(
        model: nn.Module,
        task: Any,
        data: PrivateData,
        *,
        plan: DpSgdPlan,
        config: TrainConfig,
        source: RandomSource,
        first_step: int,
        total_steps: int,
    ) -> int:
        model.train()
        loss, optimizer = make_loss(task, autocast="off"), make_optimizer(model, config)
        with mock.patch("warnings.warn"):  # that its generator is not secure
            module, private, loader = PrivacyEngine().make_private(
                module=model,
                optimizer=optimizer,
                data_loader=DataLoader(_Indices(len(data)), batch_size=plan.expected_batch_size),  # type: ignore[arg-type]
                noise_multiplier=plan.noise_multiplier,
                max_grad_norm=plan.max_grad_norm,
            )
        done = 0
        while done < plan.steps:
            for indices in loader:
                chosen = indices.flatten().long().tolist()
                if not chosen or done == plan.steps:
                    continue
                private.zero_grad()
                loss(module, data.fetch(chosen)).mean().backward()  # type: ignore[no-untyped-call]
                private.step()
                done += 1
        module.remove_hooks()
        return done

    return Mechanism(train=train)


_ADD = GridNoise.add_
_ADD_NOISE = CalibratedNoise.add_noise


def _clipping(factors: Any) -> list[Patch]:
    return [
        (privacy.optimizers, "clipping_factors", factors),
        (privacy.one_backward.clipping, "clipping_factors", factors),
        (privacy.dp_sgd, "check_clipping", lambda *args, **settings: None),
    ]
