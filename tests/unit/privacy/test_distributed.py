"""The grid of several sites' sums, and their shares of the noise: exact, enough, and refused."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from core.errors import (
    CohortTooSmallError,
    ModulusCapacityError,
    PrivacyError,
    SecureAggregationError,
    ValueRangeError,
)
from privacy.discrete_gaussian import DiscreteGaussian
from privacy.distributed import (
    MAX_ROUNDING_SHARE,
    SMOOTHING_VARIANCE,
    DistributedGrid,
    distributed_event,
    grid_of,
    grid_of_order,
    sum_distance,
)
from privacy.random_source import RandomSource, RandomStream
from privacy.secure_aggregation.context import least_survivors, max_colluding
from privacy.secure_aggregation.fixed_point import FixedPoint
from tests.support.distributed import distributed_order, grid


def stream(number: int = 0) -> RandomStream:
    return RandomSource.for_tests(bytes(range(32)), f"site {number}").stream("noise")


GRIDS = st.builds(
    grid,
    noise_multiplier=st.sampled_from([0.1, 0.8, 3.0]),
    max_grad_norm=st.sampled_from([1e-12, 0.1, 0.5, 1.0, 1e12]),
    max_batch_size=st.integers(1, 300),
    dimension=st.integers(1, 100_000),
    members=st.integers(3, 40),
    colluding_sites=st.just(0) | st.just(1),
)


# The grid


@settings(max_examples=30)
@given(GRIDS)
def test_the_grid_is_the_finest_whose_sums_stay_within_32_bits(one: DistributedGrid) -> None:
    assert math.frexp(one.step)[0] == 0.5  # a power of two
    limit = FixedPoint(one.step, one.bits).limit
    assert one.members * limit < 2**31 <= one.members * (2 * limit + 1)
    clip = Fraction(one.max_grad_norm) / Fraction(one.step)
    borne = [n for n in range(3, one.members + 1) if one.colluding_sites <= max_colluding(n)]
    widest = one.share(min(borne, key=one.honest)).reach
    assert one.max_batch_size * clip + widest <= limit
    # One step finer, sums or noise could leave the room; the noise is bounded a little widely.
    assert 2 * (one.max_batch_size * clip + 1.2 * widest) + 200 > limit
    root = math.isqrt(one.dimension - 1) + 1
    assert one.sensitivity_steps == clip + root
    assert root <= MAX_ROUNDING_SHARE * clip


@pytest.mark.parametrize(
    "changes",
    [
        {"dimension": 10**12},
        {"max_batch_size": 10**9},
        {"members": 250, "max_batch_size": 1000, "dimension": 100_000_000},
    ],
)
def test_a_grid_that_would_be_too_coarse_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ModulusCapacityError, match="adds at most 1/64 to the noise, got") as info:
        grid(**changes)
    assert "train fewer parameters" in info.value.hint


def test_usual_settings_cost_less_than_a_hundredth_for_rounding() -> None:
    """27M parameters at three sites, ten sites, and a million at a hundred."""
    for members, batch, dimension in ((3, 130, 27_000_000), (10, 60, 27_000_000), (100, 20, 10**6)):
        one = grid(members=members, max_batch_size=batch, dimension=dimension)
        clip = Fraction(one.max_grad_norm) / Fraction(one.step)
        assert one.sensitivity_steps / clip < 1.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_multiplier": math.nan}, "finite positive noise multiplier and clip"),
        ({"max_grad_norm": 0.0}, "finite positive noise multiplier and clip"),
        ({"max_batch_size": 0}, "a batch and a dimension of 1 or more"),
        ({"dimension": 0}, "a batch and a dimension of 1 or more"),
        ({"colluding_sites": -1}, "no fewer than 0 colluding sites"),
    ],
)
def test_constants_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        grid(**changes)


# How much noise


@pytest.mark.parametrize(
    ("members", "min_cohort"),
    [(3, 3), (4, 3), (5, 3), (5, 5), (7, 5), (10, 3), (10, 9), (32, 9), (100, 3), (100, 90)],
)
def test_the_honest_survivors_alone_give_the_whole_noise(members: int, min_cohort: int) -> None:
    colluding = max_colluding(members)
    one = grid(members=members, min_cohort=min_cohort, colluding_sites=colluding)
    counted = least_survivors(members, min_cohort) - colluding
    assert one.honest(members) == counted
    together = counted * one.share(members).variance
    deviation = Fraction(0.8) * one.sensitivity_steps
    assert together == deviation**2 + SMOOTHING_VARIANCE
    assert together < Fraction(100_001, 100_000) * deviation**2


def test_a_smaller_cohort_s_shares_are_larger() -> None:
    one = grid(members=10, colluding_sites=1)
    assert one.honest(10) == 6
    assert one.honest(5) == 3
    assert one.share(5).variance == 2 * one.share(10).variance


@pytest.mark.parametrize(
    ("changes", "cohort"),
    [
        ({"members": 2}, 2),
        ({"members": 3, "colluding_sites": 2}, 3),
        ({"members": 10, "colluding_sites": 4}, 10),
        ({"members": 10, "min_cohort": 11}, 10),
        ({"members": 10, "colluding_sites": 3}, 5),
        ({"members": 10, "min_cohort": 6}, 5),
        ({"members": 5}, 6),
        ({"members": 5}, 0),
    ],
)
def test_cohorts_that_cannot_bear_their_colluders_are_refused(
    changes: dict[str, Any], cohort: int
) -> None:
    with pytest.raises(CohortTooSmallError, match="enough to bear"):
        grid(**changes).share(cohort)


def total(one: DistributedGrid, cohort: int, count: int, *, wrong: float = 1.0) -> Any:
    """The noise that the honest survivors of ``cohort`` leave in a sum of zeros, in steps."""
    values = np.zeros(one.dimension, np.uint32)
    for number in range(count):
        one.add_noise(values, stream(number), cohort=cohort)
    return values.view(np.int32).astype(np.float64) * wrong


@pytest.mark.parametrize(("members", "colluding"), [(3, 1), (10, 3), (10, 0)])
def test_what_the_honest_survivors_add_is_what_is_accounted_for_and_no_other(
    members: int, colluding: int
) -> None:
    one = grid(members=members, colluding_sites=colluding, dimension=200_000)
    planned = 0.8 * float(one.sensitivity_steps)
    honest = one.honest(members)

    def accepted(noise: Any) -> bool:
        squares = float(np.square(noise / planned).sum())
        low, high = stats.chi2.ppf([0.0005, 0.9995], one.dimension)
        return low < squares < high and stats.kstest(noise / planned, "norm").pvalue > 1e-3

    noise = total(one, members, honest)
    assert accepted(noise)
    for wrong in (2 / 3, 3 / 2, 0.99, 1.01):
        assert not accepted(noise * wrong)
    # A share of sigma**2 / n, as if all sites survived and none colluded.
    assert not accepted(noise * math.sqrt(honest / members))


def test_shares_of_two_sites_and_of_two_cohorts_differ() -> None:
    one = grid(members=10, dimension=10_000)
    single = [total(one, cohort, 1) for cohort in (10, 10, 5)]
    assert np.array_equal(single[0], single[1])  # a function of key, grid and cohort
    assert not np.array_equal(single[0], single[2])
    first, second = np.zeros(10_000, np.uint32), np.zeros(10_000, np.uint32)
    one.add_noise(first, stream(1), cohort=10)
    one.add_noise(second, stream(2), cohort=10)
    both = np.corrcoef(first.view(np.int32), second.view(np.int32))
    assert abs(both[0, 1]) < 0.05


def test_noise_is_the_same_on_any_number_of_threads() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(total(grid(dimension=600_000), 4, 1))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(results[0], results[1])


@pytest.mark.parametrize(
    "values", [np.zeros(999, np.uint32), np.zeros(1000, np.int32), np.zeros((10, 100), np.uint32)]
)
def test_noise_for_another_vector_is_refused(values: Any) -> None:
    with pytest.raises(PrivacyError, match="expected 1000 uint32, got"):
        grid().add_noise(values, stream(), cohort=4)


# Encoding


def test_sums_are_rounded_half_to_even_by_sorted_name() -> None:
    one = grid(dimension=6)
    step = one.step
    sums = {
        "b": np.array([[0.5, 1.5], [2.5, -0.5]], np.float32) * np.float32(step),
        "a": np.array([3.0, -7.25], np.float32) * np.float32(step),
    }
    values = np.empty(6, np.uint32)
    one.encode_sum(sums, values)
    assert values.view(np.int32).tolist() == [3, -7, 0, 2, 2, 0]


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=4, max_size=40))
def test_rounding_moves_neighbours_apart_by_no_more_than_is_counted(
    pairs: list[tuple[float, float]],
) -> None:
    one = grid(dimension=len(pairs), max_batch_size=40)
    here, there = (np.array(side, np.float32) for side in zip(*pairs, strict=True))
    encoded = []
    for sums in (here, there):
        values = np.empty(len(pairs), np.uint32)
        one.encode_sum({"w": sums}, values)
        encoded.append(values.view(np.int32).astype(np.float64))
    apart = np.linalg.norm(encoded[0] - encoded[1])
    exact = np.linalg.norm(here.astype(np.float64) - there) / one.step
    root = float(one.sensitivity_steps - Fraction(one.max_grad_norm) / Fraction(one.step))
    assert apart <= exact + root


@pytest.mark.parametrize("bad", [math.nan, math.inf, 25.2, -25.2, 1e9])
def test_a_sum_beyond_what_clipping_allows_is_refused_and_not_kept(bad: float) -> None:
    values = np.full(1000, 7, np.uint32)
    sums = np.full(1000, 0.25, np.float32)
    sums[500] = bad
    with pytest.raises(ValueRangeError):
        grid().encode_sum({"w": sums}, values)
    assert not values.any()


def test_the_largest_sum_that_clipping_allows_fits() -> None:
    values = np.empty(1000, np.uint32)
    grid().encode_sum({"w": np.full(1000, 25.0, np.float32)}, values)
    assert values.view(np.int32).tolist() == [round(25.0 / grid().step)] * 1000


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(SecureAggregationError, match="expected room for 3 uint32"):
        grid().encode_sum({"w": np.zeros(3, np.float32)}, np.empty(1000, np.uint32))


# What the proof rests on


def pmf(variance: float, center: float, width: int) -> Any:
    """A discrete Gaussian around ``center`` on -width .. width."""
    k = np.arange(-width, width + 1)
    weights = np.exp(-((k - center) ** 2) / (2 * variance))
    return weights / weights.sum()


@pytest.mark.parametrize(("deviation", "count"), [(1.0, 2), (1.0, 5), (1.2, 2), (1.2, 3), (1.3, 2)])
def test_a_sum_of_discrete_gaussians_is_as_near_as_said_to_one(
    deviation: float, count: int
) -> None:
    """Where double precision can see it: narrow ones."""
    one = pmf(deviation**2, 0.0, 30)
    summed = one
    for _ in range(count - 1):
        summed = np.convolve(summed, one)
    whole = pmf(count * deviation**2, 0.0, len(summed) // 2)
    apart = float(np.abs(summed - whole).sum()) / 2
    assert apart <= sum_distance(deviation, count)
    if count == 2:  # and not far below: more of them smooth what the first two left
        assert apart > sum_distance(deviation, count) / 10


def test_the_distance_of_a_sum_is_nothing_for_wide_shares_and_all_for_too_narrow_ones() -> None:
    assert sum_distance(1e4, 100) == 0.0
    assert sum_distance(0.9, 2) == 1.0
    assert sum_distance(0.9, 1) == 1.0


@pytest.mark.parametrize("center", [0.0, 0.25, 0.5, 0.9])
def test_a_discrete_gaussian_is_a_randomised_rounding_of_the_continuous_one(
    center: float,
) -> None:
    """Peikert's: y normal around an integer, then k around y by a discrete Gaussian.

    The density of y is that of variance v - s**2; the mixture must be the discrete Gaussian of
    variance v around that integer, whatever it is. ``center`` moves the points of integration.
    """
    variance, smoothing, width, fine = 25.0, float(SMOOTHING_VARIANCE), 60, 64
    y = (np.arange(-width * fine, width * fine) + center) / fine
    density = np.exp(-(y**2) / (2 * (variance - smoothing)))
    density /= density.sum()
    k = np.arange(-width, width + 1)
    rounding = np.exp(-((k[:, None] - y[None, :]) ** 2) / (2 * smoothing))
    rounding /= rounding.sum(axis=0)
    found = rounding @ density
    np.testing.assert_allclose(found, pmf(variance, 0.0, width), atol=1e-14)
    # With a narrower one the grid shows: what SMOOTHING_VARIANCE is chosen for.
    narrow = np.exp(-((k[:, None] - y[None, :]) ** 2) / (2 * 0.05))
    narrow /= narrow.sum(axis=0)
    density = np.exp(-(y**2) / (2 * (variance - 0.05)))
    gap = np.abs(narrow @ (density / density.sum()) - pmf(variance, 0.0, width)).sum()
    assert gap > 1e-4


@pytest.mark.parametrize(
    ("deviation", "sensitivity"), [(8.0, 4), (8.0, 8), (10.0, 10), (16.0, 8), (24.0, 48)]
)
def test_googles_discrete_gaussian_costs_what_the_continuous_one_costs(
    deviation: float, sensitivity: int
) -> None:
    """One coordinate, from 8 steps on; a second way to what ADR 7 proves for all of them."""
    epsilons = []
    for sampling in (1.0, 0.3):
        discrete = privacy_loss_distribution.from_discrete_gaussian_mechanism(
            sigma=deviation,
            sensitivity=sensitivity,
            value_discretization_interval=1e-4,
            sampling_prob=sampling,
        )
        continuous = privacy_loss_distribution.from_gaussian_mechanism(
            deviation,
            sensitivity=sensitivity,
            value_discretization_interval=1e-4,
            sampling_prob=sampling,
        )
        one, other = (pld.get_epsilon_for_delta(1e-6) for pld in (discrete, continuous))
        assert one == pytest.approx(other, rel=2e-3)
        epsilons.append(other)
    wider = privacy_loss_distribution.from_gaussian_mechanism(
        deviation * 1.01, sensitivity=sensitivity, value_discretization_interval=1e-4
    )
    assert wider.get_epsilon_for_delta(1e-6) < epsilons[0] * (1 - 4e-3)  # it would show


def test_conditional_randomised_rounding_would_save_less_than_a_hundredth_of_the_noise() -> None:
    """Kairouz, Liu and Steinke 2021, section 4.1, at beta = exp(-1/2), against what is counted."""
    clip = 2.0**20
    for dimension, saved in ((770, 3e-5), (1_000_000, 1e-3), (27_000_000, 5e-3)):
        deterministic = clip + math.sqrt(dimension)
        beta_term = math.sqrt(2 * 0.5)
        conditional = math.sqrt(
            clip**2 + dimension / 4 + beta_term * (clip + math.sqrt(dimension) / 2)
        )
        share = 1 - conditional / deterministic
        assert 0 < share < saved


# What follows from an order


def test_the_grid_of_an_order_follows_from_public_constants_alone() -> None:
    order = distributed_order()
    one = grid_of_order(order)
    assert grid_of(order) == (one.step, one.bits)
    assert one == DistributedGrid(0.8, 0.5, 50, order.aggregation.dimension, 4, 3, 1)  # type: ignore[union-attr]
    others = order.model_copy(update={"site": "west", "num_examples": 9, "attempt": 5})
    assert grid_of(others) == grid_of(order)
    more = distributed_order(members=tuple(f"site-{n:02}" for n in range(64)))
    assert grid_of(more) != grid_of(order)


def test_the_event_of_an_order_says_what_the_noise_bears_and_how_near_it_is() -> None:
    order = distributed_order()
    event = distributed_event(order)
    assert (event.noise_multiplier, event.sample_rate, event.steps) == (0.8, 0.4, 1)
    assert (event.max_batch_size, event.max_examples, event.max_grad_norm) == (50, 5000, 0.5)
    assert event.colluding_sites == 1
    assert event.distance == grid_of_order(order).distance
    assert 0 < event.distance < 1e-28
    noise = DiscreteGaussian(grid_of_order(order).share(4).variance)
    assert event.distance > 467 * 2 * noise.distance  # that of the draws that are counted


@pytest.mark.parametrize("field", ["dp_sgd", "aggregation"])
def test_an_order_without_its_parts_has_no_grid(field: str) -> None:
    order = distributed_order().model_copy(update={field: None})
    with pytest.raises(PrivacyError, match="in mode distributed, got"):
        grid_of(order)
