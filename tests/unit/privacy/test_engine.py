"""Constants are what was given, beside Opacus' own engine, whose follow the private data."""

import warnings
from typing import Any

import pytest
import torch
from opacus import PrivacyEngine
from opacus.accountants import GaussianAccountant
from opacus.optimizers import AdaClipDPOptimizer, DPOptimizer
from torch.utils.data import DataLoader, TensorDataset

from core.errors import PrivacyError
from core.train import make_optimizer, proximal
from privacy.engine import ExecutedSteps, PublicConstantsEngine
from privacy.gradient_modes import GRADIENT_MODES
from privacy.optimizers import CalibratedNoise
from tests.support.private_training import known_source, tiny_model
from tests.support.tiny import TinyModel, train_config

MODES = sorted(GRADIENT_MODES)


def loader(count: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.zeros(count, 1)), batch_size=64)


def ours(count: int, mode: str = "hooks", **engine_options: Any) -> tuple[Any, Any, Any]:
    """Engine, wrapped model and optimizer for a data set of ``count`` records."""
    model = tiny_model()
    options = {"sample_rate": 0.0636, "expected_batch_size": 64, "sensitivity": 0.5, "pull": None}
    engine = PublicConstantsEngine(
        GRADIENT_MODES[mode],
        noise=known_source().stream("noise"),
        **options | engine_options,
    )
    module, optimizer, *_ = engine.make_private(
        module=model.train(),
        optimizer=make_optimizer(model, train_config()),
        data_loader=loader(count),
        noise_multiplier=0.8,
        max_grad_norm=0.49,
        loss_reduction="sum",
        grad_sample_mode=mode,
    )
    return engine, module, optimizer


def opacus_constants(count: int) -> tuple[int, float]:
    """What Opacus makes of a data set of ``count`` records: denominator and sampling rate."""
    model = tiny_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its generator is not secure: not what is looked at here
        engine = PrivacyEngine(accountant="rdp")
        _, optimizer, _ = engine.make_private(
            module=model.train(),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=loader(count),
            noise_multiplier=0.8,
            max_grad_norm=0.5,
        )
    take_a_step(optimizer, model, 64)
    return optimizer.expected_batch_size, engine.accountant.history[0][1]


def take_a_step(optimizer: DPOptimizer, model: TinyModel, count: int) -> None:
    for parameter in model.parameters():
        parameter.grad_sample = torch.zeros(count, *parameter.shape)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def test_opacus_constants_follow_one_record_and_ours_do_not() -> None:
    """Opacus' issues 571 and 819: 1007 records or 1008, 100 records in batches of 64."""
    assert opacus_constants(1007) == (62, 1 / 16)
    assert opacus_constants(1008) == (63, 1 / 16)
    assert opacus_constants(100) == (50, 1 / 2)
    for count in (1007, 1008, 100):
        engine, module, optimizer = ours(count)
        take_a_step(optimizer, module._module, 5)
        assert optimizer.expected_batch_size == 64
        assert engine.accountant.history == [(0.8, 0.0636, 1)]


@pytest.mark.parametrize("mode", MODES)
def test_optimizer_gets_what_the_engine_was_given(mode: str) -> None:
    _, _, optimizer = ours(10, mode, sensitivity=0.6, expected_batch_size=7)
    assert isinstance(optimizer, CalibratedNoise)
    assert optimizer.noise_multiplier == 0.8
    assert optimizer.max_grad_norm == 0.49
    assert optimizer.sensitivity == 0.6
    assert optimizer.expected_batch_size == 7
    assert optimizer.accumulated_iterations == 1 if mode == "ghost" else True


@pytest.mark.parametrize("mode", MODES)
def test_neither_adaptive_clipping_nor_a_distributed_optimizer_nor_gdp(mode: str) -> None:
    """Opacus' versions of them divide by private sizes, or underestimate."""
    engine, _, optimizer = ours(10, mode)
    assert not isinstance(optimizer, AdaClipDPOptimizer)
    assert not any("Distributed" in base.__name__ for base in type(optimizer).__mro__)
    assert not isinstance(engine.accountant, GaussianAccountant)


def test_the_data_loader_is_left_alone() -> None:
    engine, _, _ = ours(10)
    own = loader(10)
    assert engine._prepare_data_loader(own, distributed=False, poisson_sampling=True) is own


def test_steps_are_counted_one_by_one() -> None:
    engine, module, optimizer = ours(10)
    assert engine.accountant.steps == 0
    for number in range(1, 4):
        take_a_step(optimizer, module._module, 2)
        assert engine.accountant.steps == number
    optimizer.signal_skip_step(do_skip=True)
    take_a_step(optimizer, module._module, 2)
    assert engine.accountant.steps == 3  # a micro-batch that is only summed is no release


def test_accountant_ignores_the_rate_of_the_data_loader() -> None:
    accountant = ExecutedSteps(0.25)
    _, _, optimizer = ours(10)
    for parameter in optimizer.params:
        parameter.grad_sample = torch.zeros(2, *parameter.shape)
    accountant.get_optimizer_hook_fn(sample_rate=0.9)(optimizer)
    assert accountant.history == [(0.8, 0.25, 1)]


@pytest.mark.parametrize("sensitivity", [0.49, 0.3])
def test_a_clip_that_is_not_below_the_sensitivity_is_refused(sensitivity: float) -> None:
    with pytest.raises(PrivacyError, match=f"clip below the sensitivity {sensitivity}, got 0.49"):
        ours(10, sensitivity=sensitivity)


def test_a_step_without_a_clipped_sum_is_refused() -> None:
    _, _, optimizer = ours(10)
    with pytest.raises(PrivacyError, match="a clipped sum before the noise, got a step without"):
        optimizer.add_noise()


def test_the_pull_is_neither_noised_nor_divided() -> None:
    model = tiny_model()
    _, module, optimizer = ours(10)
    model = module._module
    optimizer._pull = proximal(2.0, list(optimizer.params))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    for parameter in optimizer.params:
        parameter.grad = torch.full_like(parameter, 64.0)
    optimizer.scale_grad()
    for parameter in optimizer.params:
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 1.0 + 2.0))
