"""The statistics of the conformance tests: they hold their level, and reject what is wrong."""

import numpy as np
import pytest

from audit.conformance.statistics import (
    cross_correlation,
    dispersion_p_value,
    moments,
    normality_p_value,
    ratio_interval,
    self_correlation,
    sigma_interval,
    smallest_correlation,
    smallest_sigma_gap,
    sum_p_value,
    truncated_binomial,
)
from core.errors import ScoreError


def test_the_interval_of_sigma_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        values = rng.normal(scale=1.5, size=40)
        interval = sigma_interval(float(values @ values), 40, 0.9)
        hits += interval.low <= 1.5 <= interval.high
    assert 0.88 <= hits / 2000 <= 0.92


def test_a_gap_of_the_smallest_size_is_seen_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    count, confidence = 2000, 0.99
    gap = smallest_sigma_gap(count, confidence)
    seen = 0
    for _ in range(1000):
        values = rng.normal(scale=1 - gap, size=count)
        seen += sigma_interval(float(values @ values), count, confidence).high < 1.0
    assert seen / 1000 >= 0.93


@pytest.mark.parametrize("total", [float("nan"), float("inf"), -1.0])
def test_no_interval_of_what_is_no_sum_of_squares(total: float) -> None:
    with pytest.raises(ScoreError):
        sigma_interval(total, 10, 0.9)
    with pytest.raises(ScoreError):
        sigma_interval(1.0, 0, 0.9)


def test_no_noise_has_an_interval_at_zero() -> None:
    interval = sigma_interval(0.0, 100, 0.99)
    assert interval.low == interval.high == 0.0


def test_the_ratio_of_two_deviations_covers_it_and_rejects_another() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=20_000), rng.normal(scale=1.1, size=20_000)
    same = ratio_interval(first, rng.normal(size=20_000), 0.999)
    other = ratio_interval(first, second, 0.999)
    assert same.low <= 1.0 <= same.high
    assert other.high < 1.0
    assert other.low <= 1 / 1.1 <= other.high


def test_normal_values_pass_and_others_do_not() -> None:
    rng = np.random.default_rng(3)
    assert normality_p_value(rng.normal(scale=3.0, size=20_000)) > 0.001
    assert normality_p_value(rng.laplace(size=20_000)) < 1e-6
    assert normality_p_value(rng.uniform(-1, 1, size=20_000)) < 1e-6
    assert normality_p_value(rng.normal(size=20_000) + 0.1) < 1e-6


def test_correlations_of_fresh_noise_hold_their_level() -> None:
    rng = np.random.default_rng(4)
    alone = [self_correlation(rng.normal(size=4096))[1] for _ in range(300)]
    crossed = [
        cross_correlation(rng.normal(size=4096), rng.normal(size=4096))[1] for _ in range(300)
    ]
    assert sum(p <= 0.05 for p in alone) <= 27  # of 300: 15 expected, chance of more 0.2 %
    assert sum(p <= 0.05 for p in crossed) <= 27


def test_noise_that_comes_twice_is_found_at_any_distance() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(size=8192)
    share = smallest_correlation(8192, 8192, 0.002)
    assert share < 0.1
    repeated = int(2 * share * 8192)
    twice = values.copy()
    twice[3000 : 3000 + repeated] = values[:repeated]
    assert self_correlation(twice)[1] < 0.002
    other = rng.normal(size=8192)
    other[777 : 777 + repeated] = values[5 : 5 + repeated]
    assert cross_correlation(values, other)[1] < 0.002


def test_values_that_do_not_vary_are_refused() -> None:
    zeros = np.zeros(10)
    for statistic in (normality_p_value, self_correlation):
        with pytest.raises(ScoreError):
            statistic(zeros)
    with pytest.raises(ScoreError):
        cross_correlation(np.ones(3), np.ones(4))


def test_a_cut_binomial_has_its_mass_at_the_cap() -> None:
    sizes, chances = truncated_binomial(10, 0.5, 6)
    assert sizes.tolist() == list(range(7))
    assert chances.sum() == pytest.approx(1.0)
    whole = truncated_binomial(10, 0.5, 20)[1]
    assert chances[6] == pytest.approx(whole[6:].sum())
    mean, variance, fourth = moments(*truncated_binomial(10, 0.5, 10))
    assert (mean, variance) == (pytest.approx(5.0), pytest.approx(2.5))
    assert fourth == pytest.approx(3 * 2.5**2 + 2.5 * (1 - 6 / 4))


def test_dispersions_hold_their_level_and_see_what_is_dealt_out() -> None:
    rng = np.random.default_rng(6)
    mean, variance, fourth = moments(*truncated_binomial(200, 0.1, 200))
    spread = fourth / variance**2 - 1
    false = 0
    for _ in range(1000):
        drawn = rng.binomial(200, 0.1, size=100)
        squares = float(((drawn - mean) ** 2).sum() / variance)
        false += dispersion_p_value(squares, 100.0, 100 * spread) <= 0.05
    assert 30 <= false <= 75
    assert dispersion_p_value(0.0, 100.0, 100 * spread) < 1e-9
    assert dispersion_p_value(200.0, 100.0, 100 * spread) < 1e-6


def test_a_sum_far_from_its_mean_is_rejected() -> None:
    assert sum_p_value(100.0, 100.0, 25.0) == 1.0
    assert sum_p_value(120.0, 100.0, 25.0) < 1e-4
    assert sum_p_value(3.0, 3.0, 0.0) == 1.0
    assert sum_p_value(4.0, 3.0, 0.0) == 0.0
