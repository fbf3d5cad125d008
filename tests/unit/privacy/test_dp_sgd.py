"""Private training as a whole: noise, constants, counts and the sum itself.

Where each defect of Opacus 1.6 that a rewrite could bring back is tested:

 1  constants from the private number of records   test_engine, and here (one record more)
 2  position ids without a batch dimension          test_rehearsal, test_gradient_modes
 3  ghost: tied weights, empty batches, bare norms  here, test_one_backward
 4  dropped empty batches                           here, test_sampling
 5  guessable or repeated noise                     test_random_source, and here
 6  mixed precision beyond the clip                 test_clipping
 7  an engine for each round; making private twice  test_dp_sgd_refusals; epsilon: test_accounting
 8  the GDP accountant                              test_accounting
 9  adaptive clipping, distributed                  not offered: test_engine
10  non-finite gradients                            here, test_gradient_modes
11  tied weights clipped apart                      test_clipping, test_one_backward
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from core.errors import PrivacyError, UnsupportedLayerError
from core.tasks.interface import Batch
from core.train import TrainConfig
from privacy.gradient_modes import GRADIENT_MODES
from privacy.random_source import RandomSource
from tests.support.private_training import (
    PoisonedTask,
    SilentTask,
    Watched,
    flat,
    known_source,
    naive_trajectory,
    plan_of,
    tiny_model,
    train,
)
from tests.support.tiny import TinyData, train_config

MODES = sorted(GRADIENT_MODES)
RATE = 0.1  # learning rate of train_config()


def released_steps(*, noise_multiplier: float = 0.8, steps: int = 20, **plan: Any) -> Tensor:
    """(steps, parameters): what each step released, from gradients that are zero."""
    model = tiny_model()
    watched = Watched(model, 3)
    last = train(
        model,
        watched,
        plan_of(noise_multiplier=noise_multiplier, sample_rate=1.0, steps=steps, **plan),
        task=SilentTask(),
    )
    return -torch.stack([*watched.weights, last]).double().diff(dim=0) / RATE


def deviation_interval(values: Tensor) -> tuple[float, float]:
    """99.9 % for the standard deviation around zero."""
    total = float(values.square().sum())
    low, high = stats.chi2.ppf([0.0005, 0.9995], values.numel())
    return math.sqrt(total / high), math.sqrt(total / low)


# The noise that runs is the noise that is accounted for


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("noise_multiplier", "clip", "expected"),
    [(0.8, 0.5, 8), (2.0, 0.5, 8), (0.8, 3.0, 8), (1, 1, 3)],
)
def test_measured_noise_is_what_was_planned(
    mode: str, noise_multiplier: float, clip: float, expected: int
) -> None:
    steps = released_steps(
        noise_multiplier=noise_multiplier,
        max_grad_norm=clip,
        expected_batch_size=expected,
        gradient_mode=mode,
    )
    planned = noise_multiplier * clip / expected
    low, high = deviation_interval(steps)
    assert low < planned < high
    assert not low < planned * 0.9 < high
    assert not low < planned * 1.1 < high
    assert stats.kstest(steps.flatten().numpy() / planned, "norm").pvalue > 0.001


def test_every_parameter_is_noised() -> None:
    deviations = released_steps(steps=200).std(dim=0)
    low, high = (math.sqrt(x / 200) * 0.05 for x in stats.chi2.ppf([1e-7, 1 - 1e-7], 200))
    assert low < float(deviations.min())
    assert float(deviations.max()) < high


def test_noise_is_fresh_in_each_step_and_parameter() -> None:
    noise = released_steps(steps=60)
    over_steps = torch.corrcoef(noise)[*torch.triu_indices(60, 60, 1)]
    assert float(over_steps.abs().max()) < 5 / math.sqrt(noise.shape[1])
    over_parameters = torch.corrcoef(noise.T)[
        *torch.triu_indices(noise.shape[1], noise.shape[1], 1)
    ]
    assert float(over_parameters.abs().max()) < 6 / math.sqrt(60)
    assert float(torch.corrcoef(torch.stack([noise[0], noise[0]]))[0, 1]) > 0.99  # reuse would show


def test_two_trainings_share_no_noise() -> None:
    first, second = (
        train(
            tiny_model(),
            TinyData.make(3),
            plan_of(),
            task=SilentTask(),
            source=RandomSource.fresh(),
        )
        for _ in range(2)
    )
    start = flat(tiny_model())
    both = torch.corrcoef(torch.stack([first - start, second - start]))
    assert abs(float(both[0, 1])) < 0.25


# Constants do not follow the data


@pytest.mark.parametrize("mode", MODES)
def test_one_record_more_changes_no_constant(mode: str) -> None:
    """With gradients of zero, what is released is a function of the constants alone."""
    plan = plan_of(gradient_mode=mode, sample_rate=0.01)
    released = [
        train(tiny_model(), TinyData.make(count), plan, task=SilentTask(), proximal_mu=0.3)
        for count in (1007, 1008, 2)
    ]
    assert torch.equal(released[0], released[1])
    assert torch.equal(released[0], released[2])


def test_the_denominator_is_the_expected_size_and_never_the_realised_one() -> None:
    data, plan = TinyData.make(3), plan_of(sample_rate=1.0, steps=1, noise_multiplier=1e-6)
    start = flat(tiny_model())
    eight = train(tiny_model(), data, plan) - start
    four = train(tiny_model(), data, plan_of(**{**vars(plan), "expected_batch_size": 4})) - start
    torch.testing.assert_close(four, 2 * eight, rtol=1e-4, atol=1e-6)


# Empty batches, counts and errors


@pytest.mark.parametrize("mode", MODES)
def test_empty_batches_noise_and_count(mode: str) -> None:
    model, counted = tiny_model(), list[int]()
    watched = Watched(model, 3)
    start = flat(model)
    plan = plan_of(sample_rate=1e-9, gradient_mode=mode, steps=25)
    end = train(model, watched, plan, executed=counted.append)
    assert counted == [25]
    assert watched.weights == []  # nothing was fetched
    low, high = deviation_interval((end - start).double())
    assert low < RATE * 0.8 * 0.5 / 8 * math.sqrt(25) < high


@pytest.mark.parametrize("fail_at", [1, 2, 4])
def test_executed_steps_are_told_when_an_error_ends_the_round(fail_at: int) -> None:
    model, counted = tiny_model(), list[int]()
    watched = Watched(model, 3, fail_at=fail_at)
    with pytest.raises(OSError, match="the disk is gone"):
        train(model, watched, plan_of(sample_rate=1.0), executed=counted.append)
    assert counted == [fail_at - 1]


def test_executed_steps_are_those_of_the_plan() -> None:
    counted: list[int] = []
    train(tiny_model(), TinyData.make(9), plan_of(steps=7), executed=counted.append)
    assert counted == [7]


def test_steps_that_do_not_run_are_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from privacy.sampling import TruncatedPoissonSampler

    whole = TruncatedPoissonSampler.__iter__

    def without_empty(self: TruncatedPoissonSampler) -> Any:
        return (batch for batch in whole(self) if batch)  # as Opacus' distributed sampler does

    monkeypatch.setattr(TruncatedPoissonSampler, "__iter__", without_empty)
    counted: list[int] = []
    with pytest.raises(PrivacyError, match="expected 4 noised steps, got 0: what ran is not what"):
        train(tiny_model(), TinyData.make(3), plan_of(sample_rate=1e-9), executed=counted.append)
    assert counted == [0]


def test_batches_are_cut_at_the_size_that_was_planned() -> None:
    sizes: list[int] = []

    class Counted(TinyData):
        def fetch(self, indices: Sequence[int]) -> Batch:
            sizes.append(len(indices))
            return super().fetch(indices)

    config = train_config(micro_batch_size=100)
    data = Counted(TinyData.make(30).examples)
    train(tiny_model(), data, plan_of(sample_rate=1.0, max_batch_size=7), config=config)
    assert sizes == [7] * 4


# The sum is the naive one


@pytest.mark.parametrize(
    ("mode", "shape"),
    [
        ("hooks", {}),
        ("hooks", {"tied": True}),
        ("ghost", {"rms": True}),
        ("ghost", {"classes": 2}),
        ("one_backward", {"rms": True}),
        ("one_backward", {"tied": True}),
        ("one_backward", {"classes": 2}),
    ],
)
@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.9}, {"optimizer": "adamw", "learning_rate": 0.01, "beta2": 0.9}]
)
def test_trajectory_is_that_of_the_naive_algorithm(
    mode: str, shape: dict[str, Any], settings: dict[str, Any]
) -> None:
    config = train_config(**settings)
    plan, data = plan_of(gradient_mode=mode, steps=5), TinyData.make(20)
    task = PoisonedTask()
    found = train(tiny_model(**shape), data, plan, config=config)
    expected = naive_trajectory(tiny_model(**shape), data, plan, task, config)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    smaller = plan_of(gradient_mode=mode, steps=5, max_grad_norm=0.49, noise_multiplier=0.8 / 0.98)
    other = naive_trajectory(tiny_model(**shape), data, smaller, task, config)
    assert float((found - other).abs().max()) > 2e-5  # another clip would show


def test_ghost_is_hooks_and_tied_weights_are_refused_there() -> None:
    data = TinyData.make(20)
    hooks, ghost = (
        train(tiny_model(), data, plan_of(gradient_mode=mode)) for mode in ("hooks", "ghost")
    )
    torch.testing.assert_close(hooks, ghost, rtol=0, atol=5e-4 * 0.5)
    model = tiny_model(tied=True)
    with pytest.raises(UnsupportedLayerError, match="expected untied weights with ghost clipping"):
        train(model, data, plan_of(gradient_mode="ghost"))
    assert torch.equal(flat(model), flat(tiny_model(tied=True)))


def test_ghost_in_mixed_precision_is_refused() -> None:
    with pytest.raises(PrivacyError, match="expected fp32 with ghost clipping, got mixed"):
        train(
            tiny_model(),
            TinyData.make(3),
            plan_of(gradient_mode="ghost"),
            config=train_config(autocast="bf16"),
        )


@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_do_not_change_the_result(mode: str) -> None:
    data, plan = TinyData.make(20), plan_of(gradient_mode=mode)
    results = [
        train(tiny_model(), data, plan, config=train_config(micro_batch_size=size))
        for size in (1, 3, 50)
    ]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_an_example_without_a_finite_gradient_changes_nothing_for_the_others(mode: str) -> None:
    data = TinyData.make(8, fixed_length=5)
    data.examples[3].tokens[:2] = [16, 16]  # type: ignore[index]
    plan, config = plan_of(gradient_mode=mode, sample_rate=1.0), train_config()
    found = train(tiny_model(), data, plan, task=PoisonedTask())
    assert bool(found.isfinite().all())
    expected = naive_trajectory(tiny_model(), data, plan, PoisonedTask(), config)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    with_it = train(tiny_model(), data, plan)  # its finite gradient would have shown
    assert float((with_it - found).abs().max()) > 1e-4


def test_fedprox_pulls_after_the_noise_by_weights_alone() -> None:
    plan, mu = plan_of(sample_rate=1.0), 0.5
    start = flat(tiny_model()).double()
    weights = start.clone()
    for noise in released_steps(steps=4):
        weights -= RATE * (noise + mu * (weights - start))  # neither clipped nor divided
    found = train(tiny_model(), TinyData.make(3), plan, task=SilentTask(), proximal_mu=mu)
    torch.testing.assert_close(found.double(), weights, rtol=0, atol=1e-6)
    assert float((found - start - released_steps(steps=4).sum(0) * -RATE).abs().max()) > 1e-4


# What randomness depends on


def test_the_source_alone_decides() -> None:
    def after(seed: int, source: RandomSource) -> Tensor:
        torch.manual_seed(seed)
        return train(tiny_model(), TinyData.make(10), plan_of(), source=source)

    assert torch.equal(after(1, known_source()), after(2, known_source()))
    assert not torch.equal(after(1, known_source()), after(1, known_source("another site")))
    assert not torch.equal(after(1, RandomSource.fresh()), after(1, RandomSource.fresh()))


def test_sites_on_two_threads_train_as_one_after_another() -> None:
    def site(number: int, model: nn.Module) -> Tensor:
        config: TrainConfig = train_config()
        return train(
            model,
            TinyData.make(12, seed=number),
            plan_of(steps=8),
            source=known_source(f"site {number}"),
            config=config,
        )

    alone = [site(number, tiny_model(number)) for number in range(4)]
    models = [tiny_model(number) for number in range(4)]  # torch's generator is one for all threads
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(site, range(4), models))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
