from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from audit.one_run import (
    MOST,
    Bound,
    claim_p_value,
    curve_refuted,
    fdp_estimate,
    gaussian_epsilon,
    gdp_estimate,
    guess_counts,
    largest_bound,
    one_run_bound,
    p_value,
    t_estimate,
)
from core.errors import ScoreError
from tests.support.all_thresholds import hull_counts, quantile_scores
from tests.support.mechanisms import coins, gaussian, randomised_response

Method = Callable[..., Bound]
METHODS: tuple[Method, ...] = (one_run_bound, fdp_estimate, gdp_estimate, t_estimate)


Counts = tuple[int, int]


def largest(refuted: Callable[[Counts, float], bool], counts: list[Counts], high: float) -> float:
    """The largest value that some counts refute; those that refute less drop out on the way."""
    low = 0.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        left = [one for one in counts if refuted(one, middle)]
        low, high, counts = (middle, high, left) if left else (low, middle, counts)
    return low


@pytest.mark.parametrize(
    ("shift", "one_run", "fdp"),
    [(1, 1.13346, 2.164749), (2, 2.311945, 4.7218075), (4, 4.395568, 9.133752)],
)
def test_published_values_to_a_thousandth(shift: float, one_run: float, fdp: float) -> None:
    canaries, delta = 20_000, 1e-6
    counts = list(hull_counts(quantile_scores(shift, 10_000), quantile_scores(0, 10_000)))
    alpha = 0.05 / len(counts)
    tried = [(guesses, right) for guesses, right in counts if right]

    def bound_refuted(one: Counts, epsilon: float) -> bool:
        return p_value(canaries, *one, epsilon, delta) <= alpha

    def some_curve_refuted(one: Counts, mu: float) -> bool:
        return curve_refuted(canaries, *one, mu, alpha)

    assert largest(bound_refuted, tried, 8) == pytest.approx(one_run, abs=1e-3)
    mu = largest(some_curve_refuted, tried, 4)
    assert gaussian_epsilon(mu, delta) == pytest.approx(fdp, abs=1e-3)


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3, 0.1])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0])
@pytest.mark.parametrize(("guesses", "correct"), [(1, 1), (10, 0), (10, 7), (100, 99), (100, 60)])
def test_the_p_value_is_the_formula(
    guesses: int, correct: int, epsilon: float, delta: float
) -> None:
    chance = np.exp(epsilon) / (1 + np.exp(epsilon))
    mass = [float(binom.pmf(count, guesses, chance)) for count in range(guesses + 1)]
    inner = [sum(mass[correct - i : correct]) / i for i in range(1, correct + 1)]
    expected = sum(mass[correct:]) + 2 * 200 * delta * max(inner, default=0.0)
    found = p_value(200, guesses, correct, epsilon, delta)
    assert found == pytest.approx(min(expected, 1.0), rel=1e-9)
    wrong_side = p_value(200, guesses, max(correct - 1, 0), epsilon, delta)
    assert found < wrong_side or correct == 0 or wrong_side > 1 - 1e-9


@pytest.mark.parametrize(("epsilon", "delta"), [(1.0, 0.1269367), (0.0, 0.3829249)])
def test_gaussian_dp_has_its_known_curve(epsilon: float, delta: float) -> None:
    assert gaussian_epsilon(1.0, delta) == pytest.approx(epsilon, abs=1e-5)
    assert gaussian_epsilon(1.1, delta) > epsilon + 0.01
    assert gaussian_epsilon(0.0, delta) == 0


def test_only_the_one_run_bound_may_decide_a_verdict() -> None:
    rng = np.random.default_rng(1)
    included = coins(200, rng)
    scores = gaussian(2.0)(included, rng)
    assert [method(scores, included, 1e-5).rigorous for method in METHODS] == [True] + 3 * [False]


def test_at_the_published_setting_each_method_proves_what_it_should() -> None:
    """Gaussian of epsilon 4.38 at delta 1e-5, 1,000 canaries, mean of 40 runs."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(40):
        included = coins(1000, rng)
        scores = gaussian(1.0)(included, rng)
        found.append([method(scores, included, 1e-5).epsilon for method in METHODS])
    one_run, fdp, gdp, t = np.mean(found, axis=0)
    assert gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.3772, abs=1e-3)
    assert 1.4 < one_run < 1.65 < 1.9 < fdp < 2.3 < 2.6 < gdp < 3.1 < 3.6 < t < 3.95


@pytest.mark.parametrize("method", METHODS)
def test_included_and_held_out_are_not_exchangeable(method: Method) -> None:
    rng = np.random.default_rng(3)
    included = coins(400, rng)
    scores = gaussian(2.0)(included, rng)
    assert method(scores, included, 1e-5).epsilon > 1
    assert method(scores, ~included, 1e-5).epsilon == 0
    assert method(-scores, included, 1e-5).epsilon == 0


def test_a_claim_falls_exactly_below_the_bound() -> None:
    rng = np.random.default_rng(4)
    included = coins(500, rng)
    scores = randomised_response(3.0)(included, rng)
    bound = one_run_bound(scores, included, 1e-6, confidence=0.95).epsilon
    assert claim_p_value(scores, included, bound, 1e-6) <= 0.05
    assert claim_p_value(scores, included, bound + 1e-3, 1e-6) > 0.05
    assert one_run_bound(scores, included, 1e-6, confidence=0.99).epsilon < bound


def test_guesses_are_the_highest_and_the_lowest_scores() -> None:
    included = np.array([True] * 50 + [False] * 50)
    bound = one_run_bound(included * 1.0, included, 0.0)
    assert (bound.guesses, bound.correct) == (100, 100)
    assert bound.epsilon == pytest.approx(largest_bound(100, 0.0))
    # every guess right: q ** 100 = 0.05 / 7, a hundred canaries and all the grid's seven counts
    share = (0.05 / len(guess_counts(100))) ** 0.01
    assert bound.epsilon == pytest.approx(np.log(share / (1 - share)), abs=1e-5)


def test_thirty_canaries_prove_less_than_two() -> None:
    assert 1.5 < largest_bound(30, 1e-5) < 2
    assert largest_bound(1000, 1e-5) > 5
    assert largest_bound(1000, 1e-2) == 0  # such a delta lets every tenth canary out


def test_the_grid_is_seven_even_counts() -> None:
    assert guess_counts(1000) == (14, 30, 62, 124, 250, 500, 1000)
    assert guess_counts(7) == (2, 6)
    assert guess_counts(2) == (2,)


@pytest.mark.parametrize("method", METHODS[:3])
def test_the_order_in_which_canaries_come_says_nothing(method: Method) -> None:
    """All included first, and scores that tie: ties must not be guessed right by position."""
    included = np.arange(2000) < 1000
    scores = np.zeros(2000)
    scores[[0, 1999]] = 1.0
    assert method(scores, included, 1e-5).epsilon == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("scores", "included"),
    [
        ([0.1, np.nan, 0.3], [True, False, True]),
        ([0.1, np.inf, 0.3], [True, False, True]),
        ([0.5, 0.5, 0.5], [True, False, True]),
        ([0.1, 0.2], [True, False, True]),
        ([0.1, 0.2], [1, 0]),
        ([], []),
        ([0.1], [True]),
    ],
)
def test_scores_that_nothing_follows_from_are_refused(
    method: Method, scores: list[float], included: list[Any]
) -> None:
    with pytest.raises(ScoreError, match="expected"):
        method(np.array(scores), np.array(included), 1e-5)


@pytest.mark.parametrize(("delta", "confidence"), [(1.0, 0.95), (-0.1, 0.95), (1e-5, 1.0)])
@pytest.mark.parametrize("method", METHODS)
def test_levels_out_of_range_are_refused(method: Method, delta: float, confidence: float) -> None:
    with pytest.raises(ScoreError, match="expected"):
        method(np.arange(10.0), np.arange(10) > 4, delta, confidence)


def test_an_estimate_from_a_curve_needs_a_delta_and_both_kinds() -> None:
    for method in (fdp_estimate, gdp_estimate, t_estimate):
        with pytest.raises(ScoreError, match=r"delta in \(0, 1\)"):
            method(np.arange(10.0), np.arange(10) > 4, 0.0)
    for method in (gdp_estimate, t_estimate):
        with pytest.raises(ScoreError, match="in"):
            method(np.arange(10.0), np.ones(10, dtype=np.bool_), 1e-5)


def test_scores_without_any_noise_end_the_search() -> None:
    included = np.arange(100) < 50
    for noise in (0.0, 1e-12, 1e-3):
        scores = included + noise * np.sin(np.arange(100))
        assert t_estimate(scores, included, 1e-6).epsilon == MOST
        assert t_estimate(scores, ~included, 1e-6).epsilon == 0
        assert 0 < one_run_bound(scores, included, 1e-6).epsilon < 4
