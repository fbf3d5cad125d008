"""How often a bound is wrong, over many runs of mechanisms whose epsilon is known exactly."""

from collections.abc import Callable

import numpy as np
import pytest

from audit.one_run import (
    Bound,
    fdp_estimate,
    gaussian_epsilon,
    gdp_estimate,
    one_run_bound,
    t_estimate,
)
from tests.support.all_thresholds import hull_counts
from tests.support.mechanisms import (
    Mechanism,
    coins,
    gaussian,
    laplace,
    nothing,
    randomised_response,
    sometimes_open,
)
from tests.support.rates import at_most

Method = Callable[..., Bound]
DELTA = 1e-5
EXACT: dict[str, tuple[Mechanism, float, tuple[float, float]]] = {
    "laplace 1": (laplace(1.0), 1.0, (0.70, 0.82)),
    "laplace 4": (laplace(4.0), 4.0, (3.05, 3.35)),
    "randomised response 1": (randomised_response(1.0), 1.0, (0.74, 0.87)),
    "randomised response 4": (randomised_response(4.0), 4.0, (3.10, 3.45)),
    "gaussian 1": (gaussian(1.0), gaussian_epsilon(1.0, DELTA), (1.40, 1.65)),
    "gaussian 2": (gaussian(2.0), gaussian_epsilon(2.0, DELTA), (2.95, 3.25)),
}
"""Mechanism, its exact epsilon, and the band of the mean bound from 1,000 canaries."""

short_and_soak = pytest.mark.parametrize("seeds", [400, pytest.param(1000, marks=pytest.mark.soak)])
some_and_soak = pytest.mark.parametrize("seeds", [80, pytest.param(1000, marks=pytest.mark.soak)])


def bounds(
    method: Method, mechanism: Mechanism, seeds: int, canaries: int = 1000, **options: float
) -> list[float]:
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng([seed, canaries])
        included = coins(canaries, rng)
        delta = options.get("delta", DELTA)
        confidence = options.get("confidence", 0.95)
        found.append(method(mechanism(included, rng), included, delta, confidence).epsilon)
    return found


@short_and_soak
@pytest.mark.parametrize("method", [one_run_bound, fdp_estimate, gdp_estimate, t_estimate])
@pytest.mark.parametrize("canaries", [60, 1000])
def test_a_model_without_leakage_is_rarely_said_to_leak(
    method: Method, canaries: int, seeds: int
) -> None:
    found = bounds(method, nothing, seeds, canaries)
    assert at_most(sum(bound > 0 for bound in found), seeds, 0.05)


@short_and_soak
def test_dropping_the_correction_is_caught(seeds: int) -> None:
    found = bounds(one_run_bound, nothing, seeds, confidence=1 - 7 * 0.05)
    assert not at_most(sum(bound > 0 for bound in found), seeds, 0.05)


@short_and_soak
def test_choosing_the_threshold_with_hindsight_is_caught(seeds: int) -> None:
    from audit.one_run import p_value

    alarms = 0
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 5])
        scores = nothing(included := coins(500, rng), rng)
        counts = hull_counts(scores[included], scores[~included])
        alarms += any(p_value(500, *tried, 0.0, DELTA) <= 0.05 for tried in counts if tried[1])
    assert not at_most(alarms, seeds, 0.05)


@some_and_soak
@pytest.mark.parametrize("name", EXACT)
def test_the_bound_rarely_exceeds_the_exact_epsilon_and_has_its_power(
    name: str, seeds: int
) -> None:
    mechanism, epsilon, (low, high) = EXACT[name]
    found = bounds(one_run_bound, mechanism, seeds)
    assert at_most(sum(bound > epsilon for bound in found), seeds, 0.05)
    assert low < float(np.mean(found)) < high
    # The same count refuses a claim that is too small: what is proven is close to what is true.
    assert not at_most(sum(bound > 0.6 * low for bound in found), seeds, 0.05)


@some_and_soak
def test_the_term_with_delta_is_what_keeps_the_bound_right(seeds: int) -> None:
    epsilon, delta = 1.0, 0.02
    mechanism = sometimes_open(epsilon, delta)
    with_delta = bounds(one_run_bound, mechanism, seeds, delta=delta)
    without = bounds(one_run_bound, mechanism, seeds, delta=0.0)
    assert at_most(sum(bound > epsilon for bound in with_delta), seeds, 0.05)
    assert not at_most(sum(bound > epsilon for bound in without), seeds, 0.05)


@some_and_soak
@pytest.mark.parametrize("method", [fdp_estimate, gdp_estimate, t_estimate])
def test_an_estimate_holds_for_the_curve_that_it_assumes(method: Method, seeds: int) -> None:
    found = bounds(method, gaussian(1.0), seeds)
    assert at_most(sum(bound > gaussian_epsilon(1.0, DELTA) for bound in found), seeds, 0.05)


@some_and_soak
@pytest.mark.parametrize("method", [fdp_estimate, gdp_estimate, t_estimate])
def test_an_estimate_refutes_a_correct_laplace_mechanism(method: Method, seeds: int) -> None:
    """Why none of them may decide a verdict."""
    found = bounds(method, laplace(1.0), seeds)
    assert sum(bound > 1.0 for bound in found) > 0.4 * seeds
