"""An auditor with a flipped sign or a dropped correction is found out by the ground truth."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from audit import intervals, one_run
from core.errors import ScoreError
from tests.support.altered_modules import altered
from tests.support.mechanisms import coins, gaussian, nothing
from tests.support.rates import at_least, at_most

# ruff: noqa: E501  (a mutation is one line of the code under test)

ONE_RUN = (
    ("np.lexsort((ties, -values))", "np.lexsort((ties, values))"),
    ("(~truth[len(order) - half :]).sum()", "truth[len(order) - half :].sum()"),
    ("alpha = _alpha(delta, confidence) / len(tries)", "alpha = _alpha(delta, confidence)"),
    ("return p_value(canaries, *tried, epsilon, delta) <= alpha", "return p_value(canaries, *tried, epsilon, delta) > alpha"),
    ("bdtrc(correct - 1, guesses", "bdtrc(correct, guesses"),
    ("2 * canaries * delta *", "canaries * delta *"),
    ("/ np.arange(1, correct + 1)", "/ np.arange(2, correct + 2)"),
    ("return min(found * len(tries), 1.0)", "return found"),
    ("ndtr(ndtri(right) - mu)", "ndtr(ndtri(right) + mu)"),
    ("right + wrong > guesses / canaries", "right + wrong < guesses / canaries"),
    ("mu = -float(ndtri(alarms_at_most))", "mu = float(ndtri(alarms_at_most))"),
    ("scores[included], scores[~included]", "scores[~included], scores[included]"),
    ("return first - second > delta", "return first > delta"),
)  # fmt: skip
INTERVALS = (
    ("tail = (1 - checked_level(confidence)) / 2\n    low = betaincinv(successes,", "tail = 1 - checked_level(confidence)\n    low = betaincinv(successes,"),
    ("math.hypot(p1 - first.low, second.high - p2)", "math.hypot(first.high - p1, p2 - second.low)"),
    ("z * z / trials", "z / trials"),
    ("np.arange(len(values), 0, -1)", "np.ones(len(values))"),
    ("np.minimum(values * len(values), 1.0)", "np.minimum(values, 1.0)"),
    ("return (1 + int(np.count_nonzero", "return (int(np.count_nonzero"),
    ("drawn >= observed - slack", "drawn > observed + slack"),
    ("float(_share_below(first, second).mean())", "float(_share_below(second, first).mean())"),
    ("by_positive, by_negative = of_pos_a - of_pos_b", "by_positive, by_negative = of_pos_a + of_pos_b"),
    ("np.sort(others)[-allowed - 1]", "np.sort(members)[-allowed - 1]"),
    ("if allowed < MIN_ABOVE_THRESHOLD:", "if allowed < 1:"),
    ("gap - tolerance < error * null + hit * deviation", "gap - tolerance < error * null"),
    ("< error * wider(beyond) + hit * wider(auc)", "< error * wider(beyond)"),
    ("members[item] for item in chosen", "members[item] for item in range(len(chosen))"),
)  # fmt: skip


def canary_checks(m: Any) -> Iterator[bool]:
    """The ground truth of the bounds, in short."""
    yield bool(np.isclose(m.p_value(200, 10, 7, 0.5, 1e-3), 0.5393155, atol=1e-6))
    yield bool(np.isclose(m.gaussian_epsilon(1.0, 1e-5), 4.37718, atol=1e-4))
    rng = np.random.default_rng(31)
    runs = [(nothing(c, rng), c) for c in (coins(300, rng) for _ in range(300))]
    yield at_most(sum(m.one_run_bound(*run, 0.0).epsilon > 0 for run in runs), 300, 0.05)
    yield at_most(sum(m.claim_p_value(*run, 0.0, 0.0) <= 0.05 for run in runs), 300, 0.05)
    runs = [(gaussian(2.0)(c, rng), c) for c in (coins(1000, rng) for _ in range(8))]
    bands = {"one_run_bound": (2.8, 3.4), "fdp_estimate": (4.3, 5.2),
             "gdp_estimate": (7.2, 8.3), "t_estimate": (8.5, 9.997)}  # fmt: skip
    for name, (low, high) in bands.items():
        yield low < float(np.mean([getattr(m, name)(*run, 1e-5).epsilon for run in runs])) < high


def statistics_checks(m: Any) -> Iterator[bool]:
    """The ground truth of intervals and tests, in short."""
    exact, score = m.clopper_pearson(3, 40), m.wilson(3, 40)
    yield np.allclose((exact.low, exact.high), (0.015742, 0.203865), atol=1e-5)
    yield np.allclose((score.low, score.high), (0.025836, 0.198642), atol=1e-5)
    difference = m.newcombe(9, 10, 3, 10)
    yield np.allclose((difference.low, difference.high), (0.1705, 0.8090), atol=1e-4)
    yield np.allclose(m.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    yield np.allclose(m.bonferroni([0.01, 0.04]), [0.02, 0.08])
    yield m.permutation_p(4.0, np.arange(4.0)) == 0.2
    yield m.permutation_p(3.0, np.arange(4.0)) == 0.4
    rng = np.random.default_rng(32)
    inside, paired_inside = 0, 0
    for _ in range(200):
        shared = rng.normal(size=120) + (truth := np.arange(120) < 60)
        first, second = shared + rng.normal(size=120), shared + rng.normal(size=120)
        interval = m.delong(shared[truth], shared[~truth]).interval
        inside += interval.low <= 0.76025 <= interval.high  # Phi(1 / sqrt 2)
        paired = m.delong_difference(*(x[y] for x in (first, second) for y in (truth, ~truth)))
        paired_inside += paired.interval.low <= 0 <= paired.interval.high
    yield at_least(inside, 200, 0.94)
    yield at_least(paired_inside, 200, 0.94) and at_most(paired_inside, 200, 0.97)
    same = (shared[truth], shared[~truth])
    yield m.delong_difference(*same, *same).variance == 0
    yield m.tpr_at_fpr(np.full(300, 500.5), np.arange(1000.0), 0.1).threshold == 899
    try:
        m.tpr_at_fpr(np.arange(50.0), np.arange(100.0), 0.05)
    except ScoreError:
        yield True
    yield 0.295 < m.smallest_gap(100, 60) < 0.305
    yield 0.60 < m.smallest_auc(200, 200) < 0.61
    mean = m.bootstrap(np.arange(20.0), lambda v: float(v.mean()), rng, draws=99)
    yield mean.low < 8 < 11 < mean.high


def passes(checks: Callable[[Any], Iterator[bool]], module: ModuleType, number: int) -> bool:
    """Whether all ``number`` checks are made, and hold."""
    try:
        done = list(checks(module))
    except (ValueError, ArithmeticError, ScoreError):
        return False
    return len(done) == number and all(done)


def test_the_real_code_passes_every_check() -> None:
    assert passes(canary_checks, one_run, 8)
    assert passes(statistics_checks, intervals, 15)


@pytest.mark.parametrize(("old", "new"), ONE_RUN)
def test_a_mutant_of_the_bounds_is_found_out(old: str, new: str) -> None:
    assert not passes(canary_checks, altered(one_run, old, new), 8)


@pytest.mark.parametrize(("old", "new"), INTERVALS)
def test_a_mutant_of_the_statistics_is_found_out(old: str, new: str) -> None:
    assert not passes(statistics_checks, altered(intervals, old, new), 15)
