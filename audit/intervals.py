"""Intervals, tests and their power: the one home of the audit's statistics.

Everything is two-sided where nothing else is said. Input that a statistic is not defined for
(NaN, nothing at all, scores that are all alike) raises ``ScoreError``: a verdict that rests on it
would rest on nothing. The long road to an interval near 0 or 1 is taken on purpose: the textbook
forms (Wald, DeLong's variance of 0) claim certainty there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from audit.fixed_margins import tables_with_margins
from audit.score_checks import (
    FloatArray as FloatArray,
)
from audit.score_checks import (
    check_counts,
    checked_level,
    checked_p_values,
    checked_scores,
    informative_tables,
)
from audit.verdicts import Interval
from core.errors import ScoreError

Alternative = Literal["two-sided", "greater", "less"]

MIN_ABOVE_THRESHOLD: Final = 10
"""Non-members that a false positive rate must let through before a TPR is stated for it."""
TIE: Final = 1e-9
"""Relative; values this close are ties, so that rounding does not decide a permutation test."""


@dataclass(frozen=True)
class AucEstimate:
    """How well scores tell positives from negatives."""

    auc: float
    variance: float
    interval: Interval


@dataclass(frozen=True)
class AucDifference:
    """AUC of the first scores minus AUC of the second, over the same records."""

    difference: float
    variance: float
    p_value: float
    interval: Interval


@dataclass(frozen=True)
class TprEstimate:
    """True positive rate at a threshold that only the negatives chose."""

    tpr: float
    interval: Interval
    threshold: float
    """A score above it is flagged."""
    fpr_interval: Interval
    """Where the threshold's false positive rate lies beyond this sample."""


# Proportions


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """The exact interval of a proportion.

    Guarantees:
        Covers the proportion with at least ``confidence``, at any number of trials.

    Source: Clopper, Pearson 1934, "The use of confidence or fiducial limits", Biometrika 26.
    """
    check_counts(successes, trials)
    tail = (1 - checked_level(confidence)) / 2
    low = betaincinv(successes, trials - successes + 1, tail) if successes else 0.0
    high = betaincinv(successes + 1, trials - successes, 1 - tail) if successes < trials else 1.0
    return _interval(low, high, confidence, "Clopper-Pearson")


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """The score interval of a proportion: close to its nominal coverage on average.

    Source: Wilson 1927, "Probable inference", JASA 22.
    """
    check_counts(successes, trials)
    z = _z(confidence)
    rate, weight = successes / trials, z * z / trials
    middle = (rate + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(rate * (1 - rate) / trials + weight / (4 * trials))
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == trials else middle + half
    return _interval(low, high, confidence, "Wilson")


def newcombe(s1: int, n1: int, s2: int, n2: int, confidence: float = 0.95) -> Interval:
    """The hybrid score interval of a difference ``s1 / n1 - s2 / n2`` of two proportions.

    Source: Newcombe 1998, "Interval estimation for the difference between independent
        proportions", Statistics in Medicine 17, method 10.
    """
    first, second = wilson(s1, n1, confidence), wilson(s2, n2, confidence)
    p1, p2 = s1 / n1, s2 / n2
    low = p1 - p2 - math.hypot(p1 - first.low, second.high - p2)
    high = p1 - p2 + math.hypot(first.high - p1, p2 - second.low)
    return _interval(max(low, -1.0), min(high, 1.0), confidence, "Newcombe")


def student(values: FloatArray, confidence: float = 0.95) -> Interval:
    """The t interval of a mean of independent values: for a few repetitions of an experiment.

    Source: Student 1908, "The probable error of a mean", Biometrika 6.
    """
    from scipy.special import stdtrit

    checked = checked_scores(values, "values")
    if len(checked) < 2 or checked.min() == checked.max():
        raise ScoreError("expected two values or more, not all alike")
    middle = float(checked.mean())
    quantile = float(stdtrit(len(checked) - 1, (1 + checked_level(confidence)) / 2))
    half = quantile * float(checked.std(ddof=1)) / math.sqrt(len(checked))
    return _interval(middle - half, middle + half, confidence, "Student t")


def exact_binomial(
    successes: int, trials: int, p: float, alternative: Alternative = "two-sided"
) -> float:
    """The exact p-value of a proportion being ``p``; two-sided sums what is no likelier."""
    from scipy.stats import binomtest

    check_counts(successes, trials)
    if not 0 <= p <= 1:
        raise ScoreError(f"expected a probability, got {p}")
    return float(binomtest(successes, trials, p, alternative=alternative).pvalue)


def rank_p_value(rank: int, n: int) -> float:
    """P-value of a record's rank among ``n`` records, itself included; rank 1 is the most extreme.

    Guarantees:
        Uniform on ``1/n, 2/n, .. 1`` where the record is exchangeable with the others.
    """
    if not 1 <= rank <= n:
        raise ScoreError(f"expected a rank from 1 to {n}, got {rank}")
    return rank / n


# Curves


def delong(positives: FloatArray, negatives: FloatArray, confidence: float = 0.95) -> AucEstimate:
    """AUC (ties count half) with DeLong's variance; the interval is symmetric in log-odds.

    Where the scores separate the two kinds without an error, DeLong's variance is 0. The interval
    is then that of ``min(len(positives), len(negatives))`` disjoint pairs, all of them in order,
    which holds for any distribution.

    Source: DeLong, DeLong, Clarke-Pearson 1988, Biometrics 44; log-odds: Qin, Hotilovac 2008,
        "Comparison of non-parametric confidence intervals for the area under the ROC curve".
    """
    auc, of_positives, of_negatives = _placements(positives, negatives)
    variance = float(
        of_positives.var(ddof=1) / len(of_positives) + of_negatives.var(ddof=1) / len(of_negatives)
    )
    pairs = min(len(of_positives), len(of_negatives))
    if auc in (0.0, 1.0):
        exact = clopper_pearson(round(auc) * pairs, pairs, confidence)
        interval = _interval(exact.low, exact.high, confidence, "Clopper-Pearson (disjoint pairs)")
        return AucEstimate(auc, variance, interval)
    half = _z(confidence) * math.sqrt(variance) / (auc * (1 - auc))
    middle = math.log(auc / (1 - auc))
    low, high = _logistic(middle - half), _logistic(middle + half)
    return AucEstimate(auc, variance, _interval(low, high, confidence, "DeLong (log-odds)"))


def delong_difference(
    pos_a: FloatArray,
    neg_a: FloatArray,
    pos_b: FloatArray,
    neg_b: FloatArray,
    confidence: float = 0.95,
) -> AucDifference:
    """AUC of scores a minus AUC of scores b, paired: entry i of both is the same record.

    Source: DeLong et al. 1988. Where the variance is 0 the disjoint pairs of ``delong`` decide.
    """
    if np.shape(pos_a) != np.shape(pos_b) or np.shape(neg_a) != np.shape(neg_b):
        raise ScoreError("expected two scores of every record, got arrays of different lengths")
    auc_a, of_pos_a, of_neg_a = _placements(pos_a, neg_a)
    auc_b, of_pos_b, of_neg_b = _placements(pos_b, neg_b)
    by_positive, by_negative = of_pos_a - of_pos_b, of_neg_a - of_neg_b
    variance = float(
        by_positive.var(ddof=1) / len(by_positive) + by_negative.var(ddof=1) / len(by_negative)
    )
    difference = auc_a - auc_b
    if variance <= TIE**2:
        pairs = min(len(by_positive), len(by_negative))
        half = 2 * (1 - clopper_pearson(pairs, pairs, confidence).low)
        p_value = 1.0 if abs(difference) < TIE else min(2.0 ** (1 - pairs), 1.0)
        method = "Clopper-Pearson (disjoint pairs)"
    else:
        half = _z(confidence) * math.sqrt(variance)
        p_value = 2 * NormalDist().cdf(-abs(difference) / math.sqrt(variance))
        method = "DeLong (paired)"
    low, high = max(difference - half, -1.0), min(difference + half, 1.0)
    return AucDifference(difference, variance, p_value, _interval(low, high, confidence, method))


def tpr_at_fpr(
    positives: FloatArray, negatives: FloatArray, fpr: float, confidence: float = 0.95
) -> TprEstimate:
    """True positive rate at a false positive rate, the threshold taken from the negatives alone.

    Guarantees:
        At most ``fpr * len(negatives)`` negatives lie above the threshold, ties included. The
        threshold does not depend on the positives, so Clopper-Pearson covers the rate at it.

    Raises:
        ScoreError: Fewer than ``10 / fpr`` negatives: at 0.1 % below 10,000 there is no such rate.
    """
    members, others = checked_scores(positives, "positives"), checked_scores(negatives, "negatives")
    allowed = math.floor(fpr * len(others) * (1 + TIE)) if 0 < fpr < 1 else 0
    if allowed < MIN_ABOVE_THRESHOLD:
        wanted = math.ceil(MIN_ABOVE_THRESHOLD / fpr) if 0 < fpr < 1 else "a rate in (0, 1) and 1"
        raise ScoreError(
            f"expected at least {wanted} negatives for a false positive rate of {fpr}, "
            f"got {len(others)}"
        )
    threshold = float(np.sort(others)[-allowed - 1])
    caught = int(np.count_nonzero(members > threshold))
    tail = (1 - checked_level(confidence)) / 2
    # The rate above the (k+1)-th largest of n is Beta(k + 1, n - k); with ties it is smaller.
    ends = [betaincinv(allowed + 1, len(others) - allowed, q) for q in (tail, 1 - tail)]
    low = ends[0] if np.count_nonzero(others == threshold) == 1 else 0.0
    return TprEstimate(
        tpr=caught / len(members),
        interval=clopper_pearson(caught, len(members), confidence),
        threshold=threshold,
        fpr_interval=_interval(low, ends[1], confidence, "order statistic"),
    )


# Several tests at once


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: compare each with alpha.

    Guarantees:
        The chance of one false rejection or more is at most alpha, however the tests depend.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    values = checked_p_values(p_values)
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """P-values times their number: compare each with alpha."""
    values = checked_p_values(p_values)
    return [float(value) for value in np.minimum(values * len(values), 1.0)]


# Permutations and resampling


def permutation_p(observed: float, draws: FloatArray) -> float:
    """P-value of a statistic that is large where there is an effect.

    Guarantees:
        Valid at any number of draws: the observed value counts as one of them, ties count.

    Source: Phipson, Smyth 2010, "Permutation p-values should never be zero".
    """
    drawn = checked_scores(draws, "draws")
    if not math.isfinite(observed):
        raise ScoreError(f"expected a finite statistic, got {observed}")
    slack = TIE * max(abs(observed), float(np.abs(drawn).max()))
    return (1 + int(np.count_nonzero(drawn >= observed - slack))) / (1 + len(drawn))


def permutation_chi_square(
    table_by_stratum: npt.NDArray[np.integer], rng: np.random.Generator, draws: int = 999
) -> float:
    """Whether outcomes depend on groups, given the stratum: p-value from counts alone.

    The statistic is Pearson's over the strata's sums, with the expected counts summed over the
    strata; its distribution comes from tables that permute the group labels within each stratum,
    so differences between the strata are no effect.

    Args:
        table_by_stratum: Counts (strata, groups, outcomes); empty rows and columns drop out.
        rng: Of the audit's seed.
        draws: Permutations.

    Raises:
        ScoreError: In no stratum two groups with two outcomes: no permutation changes anything.
    """
    table = informative_tables(table_by_stratum)
    rows, columns = table.sum(axis=2), table.sum(axis=1)
    totals = rows.sum(axis=1)
    expected = np.einsum("sg,sk,s->gk", rows, columns, 1 / totals)
    used = expected > 0

    def statistic(counts: npt.NDArray[np.integer]) -> FloatArray:
        gap = (counts - expected)[..., used]
        return np.asarray((gap * gap / expected[used]).sum(axis=-1), dtype=np.float64)

    drawn = np.zeros((draws, *expected.shape), dtype=np.int64)
    for row, column in zip(rows, columns, strict=True):
        drawn += tables_with_margins(row, column, rng, draws)
    return permutation_p(float(statistic(table.sum(axis=0))), statistic(drawn))


def bootstrap(
    values: FloatArray,
    statistic: Callable[[FloatArray], float],
    rng: np.random.Generator,
    draws: int = 1999,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval over independent rows of ``values``; see ``cluster_bootstrap``."""
    return cluster_bootstrap(values, np.arange(len(values)), statistic, rng, draws, confidence)


def cluster_bootstrap(
    values: FloatArray,
    clusters: npt.NDArray[np.generic],
    statistic: Callable[[FloatArray], float],
    rng: np.random.Generator,
    draws: int = 1999,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of a statistic, whole clusters drawn with replacement.

    Its levels are widened for few clusters. Not for maxima and other statistics at an edge, where
    no bootstrap is right: the largest of several gaps wants a permutation test.

    Args:
        values: Shape (records, ...).
        clusters: The cluster of each record, such as the word that its template was filled with.
        statistic: Of any such array.

    Source: Hesterberg 2015, "What teachers should know about the bootstrap": the expanded
        percentile interval.
    """
    checked = checked_scores(values, "values", dimensions=None)
    if len(clusters) != len(checked):
        raise ScoreError(f"expected {len(checked)} cluster labels, got {len(clusters)}")
    names, index = np.unique(clusters, return_inverse=True)
    if len(names) < 2 or np.all(checked == checked[0]):
        raise ScoreError("expected two clusters or more, and values that are not all alike")
    members = [np.flatnonzero(index == number) for number in range(len(names))]
    found = np.empty(draws)
    for draw in range(draws):
        chosen = rng.integers(len(names), size=len(names))
        found[draw] = statistic(checked[np.concatenate([members[item] for item in chosen])])
    low, high = np.quantile(checked_scores(found, "statistics"), _expanded(len(names), confidence))
    return _interval(low, high, confidence, "bootstrap (expanded percentile)")


# Power


def smallest_gap(
    n1: int, n2: int, power: float = 0.95, alpha: float = 0.05, tolerance: float = 0.0
) -> float:
    """The smallest gap of two proportions that Newcombe's interval shows to exceed a tolerance.

    At the worst place, symmetric about one half; elsewhere smaller gaps show. With several pairs
    ``alpha`` is one pair's share. 1.0 means that even the largest gap can escape.
    """
    if min(n1, n2) < 1:
        raise ScoreError(f"expected a record of each group, got {n1} and {n2}")
    error, hit = _z(1 - alpha), NormalDist().inv_cdf(checked_level(power))

    def short(gap: float) -> bool:
        deviation = math.sqrt((1 - gap * gap) / 4 * (1 / n1 + 1 / n2))
        null = math.sqrt((1 - tolerance * tolerance) / 4 * (1 / n1 + 1 / n2))
        step = (1 / n1 + 1 / n2) / 2  # counts are whole numbers
        return gap - tolerance < error * null + hit * deviation + step

    return _smallest(short, tolerance, 1.0)


def smallest_auc(
    n_pos: int, n_neg: int, power: float = 0.95, alpha: float = 0.05, beyond: float = 0.5
) -> float:
    """The smallest AUC whose interval lies above ``beyond`` with probability ``power``.

    With the wider of the two variances that exchanging positives and negatives gives, because
    nobody knows the scores' shape beforehand.

    Source: Hanley, McNeil 1982, "The meaning and use of the area under a ROC curve": variance.
    """
    if min(n_pos, n_neg) < 2:
        raise ScoreError(f"expected two scores of each kind, got {n_pos} and {n_neg}")
    error, hit = _z(1 - alpha), NormalDist().inv_cdf(checked_level(power))

    def deviation(auc: float, first: int, second: int) -> float:
        above = auc / (2 - auc) - auc * auc
        below = 2 * auc * auc / (1 + auc) - auc * auc
        rest = (first - 1) * above + (second - 1) * below
        return math.sqrt((auc * (1 - auc) + rest) / (first * second))

    def wider(auc: float) -> float:
        return max(deviation(auc, n_pos, n_neg), deviation(auc, n_neg, n_pos))

    def short(auc: float) -> bool:
        return auc - beyond < error * wider(beyond) + hit * wider(auc)

    return _smallest(short, beyond, 1.0)


# Parts


def _interval(low: float, high: float, confidence: float, method: str) -> Interval:
    return Interval(low=float(low), high=float(high), confidence=confidence, method=method)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + checked_level(confidence)) / 2)


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def _placements(
    positives: FloatArray, negatives: FloatArray
) -> tuple[float, FloatArray, FloatArray]:
    """AUC; for each positive the share of negatives below it, for each negative that above."""
    first, second = checked_scores(positives, "positives"), checked_scores(negatives, "negatives")
    if min(len(first), len(second)) < 2:
        raise ScoreError(f"expected two scores of each kind, got {len(first)} and {len(second)}")
    if first.min() == first.max() == second.min() == second.max():
        raise ScoreError("expected scores that differ, got scores that are all alike")
    return (
        float(_share_below(first, second).mean()),
        _share_below(first, second),
        1 - _share_below(second, first),
    )


def _share_below(values: FloatArray, others: FloatArray) -> FloatArray:
    ordered = np.sort(others)
    twice = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return np.asarray(twice / (2 * len(ordered)), dtype=np.float64)


def _expanded(clusters: int, confidence: float) -> tuple[float, float]:
    from scipy.special import stdtrit

    quantile = float(stdtrit(clusters - 1, (1 + checked_level(confidence)) / 2))
    tail = NormalDist().cdf(-math.sqrt(clusters / (clusters - 1)) * quantile)
    return tail, 1 - tail


def _smallest(short: Callable[[float], bool], low: float, high: float) -> float:
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if short(middle) else (low, middle)
    return high
