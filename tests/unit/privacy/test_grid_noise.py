"""Noise on a grid: exact integers, the deviation that is accounted for, and refusals by name."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from core.errors import PrivacyError
from privacy.discrete_gaussian import DiscreteGaussian
from privacy.discrete_gaussian_grid import MAX_ROUNDING_SHARE, MIN_DEVIATION, GridNoise
from privacy.optimizers import HooksOptimizer
from privacy.random_source import RandomStream

KEY = bytes(range(32))


def grid(multiplier: float = 0.8, sensitivity: float = 0.5, dimension: int = 100_000) -> GridNoise:
    return GridNoise(noise_multiplier=multiplier, sensitivity=sensitivity, dimension=dimension)


def noised(sums: torch.Tensor, **constants: Any) -> torch.Tensor:
    result = sums.clone()
    grid(dimension=len(sums), **constants).add_([result], RandomStream(KEY))
    return result


# The grid


@pytest.mark.parametrize("multiplier", [1e-6, 0.3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("sensitivity", [1e-12, 0.5, 0.1, 1e12])
@pytest.mark.parametrize("dimension", [1, 2, 1000, 27_000_000, 10**9])
def test_the_grid_is_the_coarsest_that_costs_and_leaks_nothing(
    multiplier: float, sensitivity: float, dimension: int
) -> None:
    one = grid(multiplier, sensitivity, dimension)
    assert math.frexp(one.step)[0] == 0.5  # a power of two

    def fits(step: float) -> bool:
        clip = Fraction(sensitivity) / Fraction(step)
        root = math.isqrt(dimension - 1) + 1
        return root <= clip * MAX_ROUNDING_SHARE and Fraction(multiplier) * clip >= MIN_DEVIATION

    assert fits(one.step)
    assert not fits(2 * one.step)
    steps = Fraction(sensitivity) / Fraction(one.step) + math.isqrt(dimension - 1) + 1
    assert one.sensitivity_steps == steps
    assert steps * Fraction(one.step) <= Fraction(sensitivity) * (1 + MAX_ROUNDING_SHARE)
    assert one.distance < 2.0**-83


def rounded_normal_gap(deviation: float, variance: float) -> float:
    """Largest |log ratio| of rounded normal noise and a discrete Gaussian, out to 14 deviations."""
    k = np.arange(0, int(14 * deviation))
    below, above = stats.norm.sf((k - 0.5) / deviation), stats.norm.sf((k + 0.5) / deviation)
    discrete = np.exp(-(k.astype(np.float64) ** 2) / (2 * variance))
    discrete /= 2 * discrete.sum() - 1
    return float(np.abs(np.log(below - above) - np.log(discrete)).max())


@pytest.mark.parametrize("deviation", [4.0, 8.0, 32.0, 100.0])
def test_rounded_normal_noise_is_discrete_gaussian_with_a_twelfth_more_variance(
    deviation: float,
) -> None:
    """The bound that GridNoise.distance rests on, where double precision can see it."""
    assert rounded_normal_gap(deviation, deviation**2 + 1 / 12) < 400 / deviation**4
    assert rounded_normal_gap(deviation, deviation**2) > 400 / deviation**4 or deviation < 8
    assert rounded_normal_gap(deviation, deviation**2 + 1 / 6) > 400 / deviation**4 or deviation < 8


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=30),
)
def test_rounding_adds_at_most_the_root_of_the_dimension(pairs: list[tuple[float, float]]) -> None:
    """What the sensitivity on the grid rests on."""
    here, there = (torch.tensor(one, dtype=torch.float64) for one in zip(*pairs, strict=True))
    apart = float((here.round() - there.round()).norm())
    assert apart <= float((here - there).norm()) + math.sqrt(len(pairs)) + 1e-9


# What is released


@pytest.mark.parametrize("scale", [0.0, 1e-9, 0.3, 8.0, 40.0, 1e6])
def test_every_value_is_the_rounded_sum_plus_integer_noise(scale: float) -> None:
    """By fractions, value by value; the noise is the sampler's."""
    generator = torch.Generator().manual_seed(1)
    sums = torch.randn(2000, generator=generator) * scale
    one = grid(dimension=2000)
    sampler = DiscreteGaussian((Fraction(0.8) * one.sensitivity_steps) ** 2 + Fraction(1, 12))
    noise = sampler.sample(RandomStream(KEY), 2000).tolist()
    step = Fraction(one.step)
    expected = [
        (round(Fraction(value) / step) + drawn) * step  # round() is half to even
        for value, drawn in zip(sums.tolist(), noise, strict=True)
    ]
    found = noised(sums)
    assert found.tolist() == [float(np.float32(float(value))) for value in expected]
    assert all(Fraction(value) % step == 0 for value in found.tolist())


@pytest.mark.parametrize(
    ("multiplier", "sensitivity"), [(0.8, 0.5), (1.0, 1e-12), (1e-6, 3.0), (50.0, 1e12)]
)
def test_noise_is_normal_with_the_deviation_that_is_accounted_for_and_with_no_other(
    multiplier: float, sensitivity: float
) -> None:
    one = grid(multiplier, sensitivity)
    planned = multiplier * float(one.sensitivity_steps) * one.step
    assert multiplier * sensitivity <= planned <= 1.001 * multiplier * sensitivity
    values = noised(torch.zeros(100_000), multiplier=multiplier, sensitivity=sensitivity)
    normal = values.double().numpy() / planned
    assert stats.kstest(normal, "norm").pvalue > 0.01
    low, high = np.sqrt(np.square(normal).sum() / stats.chi2.ppf([0.9995, 0.0005], 100_000))
    assert low < 1 < high
    for wrong in (2 / 3, 1.5, 0.97, 1.03):
        assert stats.kstest(normal / wrong, "norm").pvalue < 1e-4
        assert not low < wrong < high


def test_noise_depends_neither_on_the_values_nor_on_how_they_lie() -> None:
    sums = torch.arange(600_000, dtype=torch.float32) * 2.0**-13
    whole = noised(sums)
    assert torch.equal(whole, noised(sums))
    sizes = [1, 0, 262_142, 2, 300_000, 0, 37_855]
    parts = [part.clone() for part in sums.split(sizes)]
    one = grid(dimension=600_000)
    one.add_(parts, RandomStream(KEY))
    assert torch.equal(torch.cat(parts), whole)
    step = one.step  # both exact: sums of few bits on the same grid
    noise = noised(torch.zeros(600_000)).double() / step
    near = (whole.double() - sums.double()) / step
    assert float((near - noise).abs().max()) <= 2.0**8  # fp32's last bits, beside 2**23 of noise


def test_noise_is_the_same_on_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(noised(torch.ones(600_000)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_noise_on_a_gpu_is_that_of_the_cpu() -> None:
    sums = torch.ones(5, device="cuda")
    grid(dimension=5).add_([sums], RandomStream(KEY))
    assert torch.equal(sums.cpu(), noised(torch.ones(5)))


# The optimizer


def optimizer_of(*shapes: tuple[int, ...]) -> HooksOptimizer:
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    return HooksOptimizer(
        torch.optim.SGD(parameters, lr=1.0),
        noise_multiplier=0.8,
        max_grad_norm=0.49,
        sensitivity=0.5,
        expected_batch_size=4,
        noise=RandomStream(KEY),
        pull=None,
    )


def test_an_optimizer_noises_all_its_parameters_as_one_vector_and_keeps_no_sum() -> None:
    optimizer = optimizer_of((3, 4), (5,), (2, 2))
    for parameter in optimizer.params:
        parameter.summed_grad = torch.full_like(parameter, 0.25).t().contiguous().t()
    optimizer.params[0].summed_grad = torch.full((4, 3), 0.25).t()  # not contiguous
    optimizer.add_noise()
    found = torch.cat([parameter.grad.flatten() for parameter in optimizer.params])
    assert torch.equal(found, noised(torch.full((21,), 0.25)))
    assert all(parameter.summed_grad is None for parameter in optimizer.params)
    with pytest.raises(PrivacyError, match="a clipped sum before the noise, got a step without"):
        optimizer.add_noise()


def test_an_optimizer_s_noise_follows_its_multiplier() -> None:
    """Opacus' schedulers change it between steps."""
    spread = []
    optimizer = optimizer_of((20_000,))
    for multiplier in (0.8, 8.0):
        optimizer.noise_multiplier = multiplier
        optimizer.params[0].summed_grad = torch.zeros(20_000)
        optimizer.add_noise()
        spread.append(float(optimizer.params[0].grad.std()))
    assert spread == [pytest.approx(0.4, rel=0.02), pytest.approx(4.0, rel=0.02)]


# Refusals


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e12, -1e12, 3e38])
def test_sums_that_are_not_finite_or_too_large_are_refused(bad: float) -> None:
    sums = torch.zeros(300_000)
    sums[290_000] = bad
    with pytest.raises(PrivacyError, match="expected clipped sums that are finite and below"):
        noised(sums)


def test_sums_just_within_exact_arithmetic_are_noised() -> None:
    one = grid(dimension=2)
    large = 2.0**51 * one.step  # whose last bit in fp32 is more than the noise
    assert noised(torch.tensor([large, -large])).tolist() == [large, -large]
    with pytest.raises(PrivacyError, match="expected clipped sums that are finite and below"):
        noised(torch.tensor([0.0, 2.0**52 * one.step]))


@pytest.mark.parametrize(
    "sums",
    [torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.bfloat16), torch.zeros(5, 1)],
)
def test_sums_of_another_kind_are_refused(sums: torch.Tensor) -> None:
    with pytest.raises(PrivacyError, match="expected sums of one dimension in float32"):
        grid(dimension=5).add_([sums], RandomStream(KEY))


@pytest.mark.parametrize("sizes", [[], [4], [5, 1]])
def test_sums_of_another_size_are_refused(sizes: list[int]) -> None:
    sums = [torch.zeros(size) for size in sizes]
    with pytest.raises(PrivacyError, match=f"expected sums of 5 values .* got {sum(sizes)}"):
        grid(dimension=5).add_(sums, RandomStream(KEY))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_constants_that_hide_nothing_are_refused(value: float) -> None:
    for constants in ({"multiplier": value}, {"sensitivity": value}):
        with pytest.raises(PrivacyError, match="expected a finite positive noise multiplier and"):
            grid(**constants)


def test_no_dimension_is_refused() -> None:
    with pytest.raises(PrivacyError, match="a dimension of 1 or more, got 0.8, 0.5 and 0"):
        grid(dimension=0)


@pytest.mark.parametrize(("multiplier", "sensitivity"), [(1e-30, 1e-12), (1e9, 1e30)])
def test_a_grid_that_fp32_does_not_reach_is_refused(multiplier: float, sensitivity: float) -> None:
    with pytest.raises(PrivacyError, match=r"expected a grid between 2\*\*-120 and 2\*\*64 for"):
        grid(multiplier, sensitivity)
