from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from audit.intervals import (
    FloatArray,
    clopper_pearson,
    delong,
    delong_difference,
    smallest_auc,
    tpr_at_fpr,
)
from core.errors import ScoreError
from tests.support.rates import at_least, at_most, uniform

coarse_scores = st.lists(st.integers(0, 6), min_size=2, max_size=25)


def drawn(auc: float, members: int, others: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Normal scores of that AUC."""
    rng = np.random.default_rng([seed, members, others])
    shift = NormalDist().inv_cdf(auc) * 2**0.5
    return rng.normal(shift, 1, members), rng.normal(0, 1, others)


def by_pairs(positives: FloatArray, negatives: FloatArray) -> tuple[float, float]:
    """AUC and DeLong's variance from every pair."""
    wins = (positives[:, None] > negatives) + (positives[:, None] == negatives) / 2
    variances = [wins.mean(axis=axis).var(ddof=1) for axis in (1, 0)]
    return wins.mean(), variances[0] / len(positives) + variances[1] / len(negatives)


@given(coarse_scores, coarse_scores)
def test_auc_and_variance_are_those_of_all_pairs(first: list[int], second: list[int]) -> None:
    positives, negatives = np.array(first, dtype=float), np.array(second, dtype=float)
    if positives.min() == positives.max() == negatives.min() == negatives.max():
        return
    found = delong(positives, negatives)
    auc, variance = by_pairs(positives, negatives)
    truth = [1] * len(first) + [0] * len(second)
    assert found.auc == pytest.approx(roc_auc_score(truth, first + second))
    assert (found.auc, found.variance) == pytest.approx((auc, variance), abs=1e-12)
    assert 0 <= found.interval.low <= found.auc <= found.interval.high <= 1
    other_way = delong(negatives, positives)
    assert other_way.interval.low == pytest.approx(1 - found.interval.high)


@pytest.mark.parametrize("seeds", [400, pytest.param(1000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("auc", [0.5, 0.6, 0.8, 0.95])
def test_an_auc_lies_in_its_interval(auc: float, seeds: int) -> None:
    found = [delong(*drawn(auc, 120, 150, seed)).interval for seed in range(seeds)]
    assert at_least(sum(one.low <= auc <= one.high for one in found), seeds, 0.94)
    wrong = auc - 0.1 if auc > 0.5 else 0.6
    assert not at_least(sum(one.low <= wrong <= one.high for one in found), seeds, 0.94)


def test_scores_without_an_error_leave_room_for_one() -> None:
    found = delong(np.arange(10, 40.0), np.arange(10.0))
    assert (found.auc, found.variance) == (1.0, 0.0)
    assert found.interval.low == pytest.approx(clopper_pearson(10, 10).low)
    assert found.interval.high == 1
    assert delong(np.arange(10.0), np.arange(10, 40.0)).interval.low == 0


@pytest.mark.parametrize("sizes", [(60, 60), (500, 40), (40, 500)])
def test_the_smallest_auc_is_found_as_often_as_stated(sizes: tuple[int, int]) -> None:
    auc = smallest_auc(*sizes, power=0.95, alpha=0.05)

    def found(true: float) -> int:
        return sum(delong(*drawn(true, *sizes, seed)).interval.low > 0.5 for seed in range(400))

    assert at_least(found(auc), 400, 0.94)
    assert not at_least(found(0.5 + 0.7 * (auc - 0.5)), 400, 0.94)
    assert at_most(found(0.5), 400, 0.03)


@pytest.mark.parametrize("sizes", [(60, 60), (500, 40)])
def test_the_smallest_auc_beyond_another_is_found_as_often_as_stated(
    sizes: tuple[int, int],
) -> None:
    auc = smallest_auc(*sizes, power=0.8, alpha=0.05, beyond=0.6)
    found = sum(delong(*drawn(auc, *sizes, seed)).interval.low > 0.6 for seed in range(400))

    assert auc > smallest_auc(*sizes, power=0.8, alpha=0.05)
    assert at_least(found, 400, 0.8)


def paired(seed: int, gain: float) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    rng = np.random.default_rng([seed, 11])
    truth = np.arange(200) < 100
    shared = rng.normal(size=200) + truth
    first, second = shared + rng.normal(size=200) + gain * truth, shared + rng.normal(size=200)
    return first[truth], first[~truth], second[truth], second[~truth]


def test_two_attacks_on_the_same_records_are_compared_in_pairs() -> None:
    alike = [delong_difference(*paired(seed, 0.0)) for seed in range(300)]
    assert uniform([one.p_value for one in alike])
    assert at_least(sum(one.interval.low <= 0 <= one.interval.high for one in alike), 300, 0.95)
    better = [delong_difference(*paired(seed, 0.8)) for seed in range(100)]
    assert sum(one.p_value <= 0.05 and one.difference > 0 for one in better) > 80
    apart = [
        delong(a, b).variance + delong(c, d).variance
        for a, b, c, d in (paired(seed, 0.0) for seed in range(20))
    ]
    together = [one.variance for one in alike[:20]]
    assert float(np.mean(together)) < 0.8 * float(np.mean(apart))


def test_a_difference_without_variance_claims_no_certainty() -> None:
    high, low = np.arange(10, 30.0), np.arange(10.0)
    same = delong_difference(high, low, high, low)
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert same.interval.low < -0.3
    assert same.interval.high > 0.3
    opposite = delong_difference(high, low, -high, -low)
    assert opposite.difference == 1
    assert opposite.p_value == 2.0**-9
    assert 0 < opposite.interval.low < 1


def test_the_threshold_comes_from_the_negatives_alone() -> None:
    rng = np.random.default_rng(12)
    negatives = rng.permutation(np.arange(1000.0))
    found = tpr_at_fpr(np.array([10.0, 989.0, 990.0, 5000.0]), negatives, 0.01)
    assert found.threshold == 989
    assert found.tpr == 0.5
    assert found.interval == clopper_pearson(2, 4)
    assert found.fpr_interval.low < 0.01 < found.fpr_interval.high
    assert tpr_at_fpr(np.full(3, 1e9), negatives, 0.01).threshold == 989


@given(st.integers(0, 2**32), st.integers(1, 300))
def test_ties_never_let_more_negatives_through(seed: int, levels: int) -> None:
    negatives = np.random.default_rng(seed).integers(levels, size=200).astype(np.float64)
    found = tpr_at_fpr(negatives, negatives, 0.1)
    assert found.tpr <= 0.1
    assert found.fpr_interval.low <= found.tpr <= found.fpr_interval.high


def test_the_rate_at_the_threshold_lies_in_its_interval() -> None:
    inside = 0
    for seed in range(500):
        negatives = np.random.default_rng([seed, 13]).normal(size=400)
        found = tpr_at_fpr(negatives, negatives, 0.05)
        rate = 1 - NormalDist().cdf(found.threshold)
        inside += found.fpr_interval.low <= rate <= found.fpr_interval.high
    assert at_least(inside, 500, 0.95)
    assert at_most(500 - inside, 500, 0.07)


def test_no_rate_of_one_in_a_thousand_below_ten_thousand() -> None:
    scores = np.arange(10_000.0)
    assert tpr_at_fpr(scores, scores, 0.001).tpr == 0.001
    with pytest.raises(ScoreError, match=r"at least 10000 negatives .* got 9999"):
        tpr_at_fpr(scores, scores[:-1], 0.001)


@pytest.mark.parametrize(
    "call",
    [
        lambda: delong(np.array([1.0]), np.arange(5.0)),
        lambda: delong(np.array([]), np.arange(5.0)),
        lambda: delong(np.ones(5), np.ones(5)),
        lambda: delong(np.array([1.0, np.nan]), np.arange(5.0)),
        lambda: delong(np.ones((2, 2)), np.arange(5.0)),
        lambda: delong(np.arange(4.0), np.arange(5.0), 0.0),
        lambda: delong_difference(np.arange(4.0), np.arange(5.0), np.arange(3.0), np.arange(5.0)),
        lambda: tpr_at_fpr(np.arange(5.0), np.arange(500.0), 0.0),
        lambda: tpr_at_fpr(np.arange(5.0), np.array([np.nan] * 500), 0.1),
        lambda: smallest_auc(1, 5),
    ],
)
def test_what_no_curve_is_defined_for_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ScoreError, match="expected"):
        call()
