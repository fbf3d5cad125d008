"""The rules by which others call a model leaky or unfair, from their definitions.

Each takes what the rule is given and says whether it raises an alarm at its own 5 %. Checked
against published values by ``check``, because a rival that is built wrongly proves nothing.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv
from scipy.stats import binom, norm

from audit.one_run import p_value

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
ALPHA = 0.05


def bailey(hits: FloatArray, alarms: FloatArray, positives: int, negatives: int) -> FloatArray:
    """Lower bound of the ratio of two rates; Bailey 1987, in the form of TensorFlow Privacy."""
    z = norm.ppf(ALPHA)
    tp = np.where(hits == positives, positives - 0.5, hits)
    fp = np.where(alarms == negatives, negatives - 0.5, alarms)
    fp = np.where(fp == 0, 0.5, fp)
    tp = np.where(tp == 0, np.nan, tp)
    tpr, fpr = tp / positives, fp / negatives
    spread = (1 - tpr) / tp + (1 - fpr) / fp - z**2 * (1 - tpr) * (1 - fpr) / (9 * tp * fp)
    with np.errstate(invalid="ignore"):
        ratio = (1 + z / 3 * np.sqrt(spread)) / (1 - z**2 * (1 - fpr) / (9 * fp))
    return np.asarray(np.nan_to_num(tpr / fpr * ratio**3))


def clopper_pearson_ratio(
    hits: FloatArray, alarms: FloatArray, positives: int, negatives: int
) -> FloatArray:
    """Lower bound of the ratio of two rates; Jagielski, Ullman, Oprea 2020."""
    low = np.nan_to_num(betaincinv(hits, positives - hits + 1, ALPHA / 2))
    high = np.nan_to_num(betaincinv(alarms + 1, negatives - alarms, 1 - ALPHA / 2), nan=1.0)
    return np.asarray(low / high)


def tf_privacy(scores: FloatArray, included: BoolArray, method: str) -> bool:
    """The largest bound over all thresholds and both directions is above 0; no correction.

    Source: TensorFlow Privacy, ``epsilon_lower_bound.EpsilonLowerBound`` with its defaults.
    """
    positives, negatives = int(included.sum()), int((~included).sum())
    order = np.argsort(-scores)
    tp = np.cumsum(included[order]).astype(np.float64)
    fp = np.cumsum(~included[order]).astype(np.float64)
    fn, tn = positives - tp, negatives - fp
    bound = {"bailey": bailey, "clopper_pearson": clopper_pearson_ratio}[method]
    sides = (
        bound(tp, fp, positives, negatives),
        bound(tn, fn, negatives, positives),
        bound(fp, tp, negatives, positives),
        bound(fn, tn, positives, negatives),
    )
    return bool(max(side.max() for side in sides) > 1)


def privacy_meter(scores: FloatArray, included: BoolArray) -> bool:
    """The largest of the one-run bounds over pairs of guess counts is above 0; no correction.

    Source: Privacy Meter, ``audit.compute_abstain_attack_results``: steps of the square root of
        the number of canaries, p-value 0.05, delta 0.
    """
    size = len(scores)
    truth = included[np.argsort(scores, kind="stable")]
    out_before = np.concatenate([[0], np.cumsum(~truth)])
    in_from = np.concatenate([np.cumsum(truth[::-1])[::-1], [0]])
    step = int(np.sqrt(size))
    lowest, highest = np.array(
        [(low, high) for high in range(0, size, step) for low in range(0, high, step)]
    ).T
    correct, guesses = out_before[lowest] + in_from[highest], lowest + size - highest
    return bool((binom.sf(correct - 1, guesses, 0.5) < ALPHA).any())


def bonferroni_all_thresholds(scores: FloatArray, included: BoolArray, delta: float) -> bool:
    """The one-run bound over the thresholds on the ROC curve's hull, corrected for these.

    Source: jax_privacy, ``auditing.CanaryScoreAuditor.epsilon_one_run`` with ``Bonferroni``. The
        hull is chosen by the same scores, so that the correction is somewhat too small.
    """
    counts = list(hull_counts(scores[included], scores[~included]))
    alpha = ALPHA / len(counts)
    return any(
        p_value(len(scores), guesses, right, 0.0, delta) <= alpha
        for guesses, right in counts
        if 2 * right > guesses
    )


def hull_counts(inside: FloatArray, outside: FloatArray) -> Iterator[tuple[int, int]]:
    """Guesses and right guesses at every threshold on the convex hull of the ROC curve."""
    thresholds = np.append(np.union1d(inside, outside), np.inf)
    points = np.stack([np.searchsorted(np.sort(one), thresholds) for one in (inside, outside)], 1)
    kept = np.arange(len(points))
    while len(kept) > 2:
        steps = np.diff(points[kept], axis=0)
        turns = steps[:-1, 1] * steps[1:, 0] - steps[1:, 1] * steps[:-1, 0]
        if (turns > 0).all():
            break
        kept = kept[np.concatenate([[True], turns > 0, [True]])]
    for missed, cleared in points[kept]:
        right = len(inside) - int(missed)
        yield right + len(outside) - int(cleared), right


def four_fifths(right: IntArray, sizes: IntArray) -> bool:
    """The lowest rate is below four fifths of the highest.

    Source: Uniform Guidelines on Employee Selection Procedures, 29 CFR 1607.4 D.
    """
    rates = right / sizes
    return bool(rates.min() < 0.8 * rates.max())


def gap_above_a_tenth(right: IntArray, sizes: IntArray) -> bool:
    """The highest rate is more than 0.1 above the lowest: a common gate in model cards."""
    rates = right / sizes
    return bool(rates.max() - rates.min() > 0.1)


def bootstrap_of_the_gap(right: IntArray, sizes: IntArray, rng: np.random.Generator) -> bool:
    """The 95 % percentile interval of the largest gap lies above 0."""
    drawn = rng.binomial(sizes, right / sizes, size=(999, len(sizes))) / sizes
    return bool(np.quantile(np.ptp(drawn, axis=1), 0.025) > 0)


def check() -> None:
    """The ratio bounds are those of TensorFlow Privacy's documentation and tests."""
    hits, alarms = np.array([100.0, 90.0]), np.array([10.0, 5.0])
    found = bailey(hits, alarms, 110, 80)
    if not np.allclose(found, [4.61953896, 6.87647915]):
        raise SystemExit(f"bailey: expected the published bounds, got {found}: not measured")
    inside = norm.ppf((np.arange(10_000) + 0.5) / 10_000) + 1
    counts = list(hull_counts(inside, inside - 1))
    alpha = ALPHA / len(counts)

    def refuted(epsilon: float) -> bool:
        return any(p_value(20_000, *one, epsilon, 1e-6) <= alpha for one in counts if one[1])

    if not refuted(1.1334) or refuted(1.1336):
        raise SystemExit("bonferroni_all_thresholds: expected a bound of 1.13346: not measured")
