"""How much epsilon a single training run proves: one rigorous bound, three labelled estimates.

``one_run_bound`` assumes nothing but differential privacy itself and canaries that a fair coin
put in, so it may decide a verdict. The estimates assume more (a Gaussian trade-off curve, canaries
that do not influence each other, scores that are normal): they stand beside it, nearer to the
truth where their assumptions hold, and refute only the curve that they assume.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import bdtrc, betaincinv, gammaln, log_ndtr, ndtr, ndtri

from core.errors import ScoreError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

GUESS_SHARES: Final = (1, 2, 4, 8, 16, 32, 64)
"""Guesses are made on one canary in so many. Fixed before any score is seen: choosing afterwards
the count that proves most is what makes other auditors see leaks in models without any."""
TOLERANCE: Final = 1e-7
"""How far below the bound itself the search may stop."""
MOST: Final = 2.0**10
"""Where a search ends: beyond it an epsilon says nothing, and without noise there is no end."""


@dataclass(frozen=True)
class Bound:
    """A lower bound of epsilon."""

    epsilon: float
    guesses: int
    """At the count that proves most; 0 where the method counts none."""
    correct: int
    method: str
    rigorous: bool
    """Whether it holds for every mechanism; an estimate never decides a verdict."""


def one_run_bound(
    scores: FloatArray, included: BoolArray, delta: float, confidence: float = 0.95
) -> Bound:
    """The epsilon that one run refutes.

    Guarantees:
        For a mechanism that is (epsilon, delta)-DP under adding or removing one canary, the bound
        exceeds epsilon with probability at most ``1 - confidence``, whatever the scores are, where
        each canary was included by its own fair coin.

    Args:
        scores: One of each canary; higher where it looks included.
        included: Whether the coin put it in.
        delta: Of the claim.
        confidence: Of the whole grid of guess counts together (Bonferroni).

    Raises:
        ScoreError: Scores with NaN or all alike, or not one per canary.

    Source: Steinke, Nasr, Jagielski 2023, "Privacy Auditing with One (1) Training Run",
        Theorem 5.2; the grid in place of their choice by hindsight is ours.
    """
    tries = _tries(scores, included)
    alpha = _alpha(delta, confidence) / len(tries)
    canaries = len(scores)

    def refuted(tried: tuple[int, int], epsilon: float) -> bool:
        return p_value(canaries, *tried, epsilon, delta) <= alpha

    epsilon, (guesses, correct) = _best(tries, refuted)
    return Bound(epsilon, guesses, correct, "one run (Steinke et al. 2023)", rigorous=True)


def claim_p_value(scores: FloatArray, included: BoolArray, epsilon: float, delta: float) -> float:
    """P-value of the claim that the run is (epsilon, delta)-DP, over the grid (Bonferroni).

    Guarantees:
        At most alpha exactly where ``one_run_bound`` at ``1 - alpha`` reaches ``epsilon``.
    """
    if not epsilon >= 0:
        raise ScoreError(f"expected an epsilon of 0 or more, got {epsilon}")
    _alpha(delta, 0.5)
    tries = _tries(scores, included)
    found = min(p_value(len(scores), *tried, epsilon, delta) for tried in tries)
    return min(found * len(tries), 1.0)


def largest_bound(canaries: int, delta: float, confidence: float = 0.95) -> float:
    """What ``one_run_bound`` proves where every guess is right: so many canaries show no more."""
    included = np.arange(canaries) * 2 >= canaries
    return one_run_bound(included.astype(np.float64), included, delta, confidence).epsilon


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Chance of so many right guesses under (epsilon, delta)-DP, at most.

    With ``W ~ Bin(guesses, e^eps / (1 + e^eps))``:
    ``P[W >= v] + 2 m delta max_i P[v > W >= v - i] / i``.

    Source: Steinke et al. 2023, Theorem 5.2 and Algorithm 3.
    """
    chance = 1 / (1 + math.exp(-epsilon))
    tail = float(bdtrc(correct - 1, guesses, chance)) if correct > 0 else 1.0
    if delta == 0.0 or correct == 0:
        return min(tail, 1.0)
    below = np.arange(correct - 1, -1, -1, dtype=np.float64)
    log_mass = (
        gammaln(guesses + 1)
        - gammaln(below + 1)
        - gammaln(guesses - below + 1)
        - below * math.log1p(math.exp(-epsilon))
        - (guesses - below) * (epsilon + math.log1p(math.exp(-epsilon)))
    )
    within = np.cumsum(np.exp(log_mass)) / np.arange(1, correct + 1)
    return min(tail + 2 * canaries * delta * float(within.max()), 1.0)


def fdp_estimate(
    scores: FloatArray, included: BoolArray, delta: float, confidence: float = 0.95
) -> Bound:
    """The largest Gaussian trade-off curve that the guesses refute, as an epsilon at ``delta``.

    Not a bound of epsilon: that a Gaussian curve is refuted says nothing of another mechanism
    with the same epsilon. It "refutes" a correct Laplace mechanism in most runs.

    Source: Mahloujifar, Melis, Chaudhuri 2024, "Auditing f-Differential Privacy in One Run",
        Algorithm 3.
    """
    tries = _tries(scores, included)
    alpha = _alpha(delta, confidence, positive=True) / len(tries)
    canaries = len(scores)

    def refuted(tried: tuple[int, int], mu: float) -> bool:
        return curve_refuted(canaries, *tried, mu, alpha)

    mu, (guesses, correct) = _best(tries, refuted)
    epsilon = gaussian_epsilon(mu, delta)
    return Bound(epsilon, guesses, correct, "f-DP (Mahloujifar et al. 2024)", rigorous=False)


def curve_refuted(canaries: int, guesses: int, correct: int, mu: float, alpha: float) -> bool:
    """Whether so many right guesses refute the trade-off curve of a Gaussian shifted by ``mu``.

    Source: Mahloujifar et al. 2024, Algorithm 3 with the curve of Dong et al. 2019.
    """
    right = alpha * correct / canaries
    wrong = alpha * (guesses - correct) / canaries
    for count in range(correct - 1, -1, -1):
        raised = max(wrong, float(ndtr(ndtri(right) - mu)))
        if raised == wrong:
            break  # neither changes any more
        right = min(right + count / (guesses - count) * (raised - wrong), 1.0)
        wrong = raised
    return right + wrong > guesses / canaries


def gdp_estimate(
    scores: FloatArray, included: BoolArray, delta: float, confidence: float = 0.95
) -> Bound:
    """Gaussian DP from Clopper-Pearson bounds of an attack's two errors, as an epsilon.

    Assumes a Gaussian trade-off curve, and canaries that are independent given the model, which
    those of one run are not.

    Source: Nasr et al. 2023, "Tight Auditing of Differentially Private Machine Learning"; the
        thresholds are those of the grid, from both ends, in place of all with hindsight.
    """
    order, truth = _ranked(scores, included)
    alpha = _alpha(delta, confidence, positive=True)
    members, others = int(truth.sum()), int((~truth).sum())
    if not members or not others:
        raise ScoreError(f"expected canaries in and out, got {members} and {others}")
    cuts = sorted({cut for count in guess_counts(len(order)) for cut in _cuts(count, len(order))})
    best, counted = -math.inf, (0, 0)
    for cut in cuts:  # the first ``cut`` of the ranking are said to be in
        caught = int(truth[:cut].sum())
        false_alarms = cut - caught
        missed_at_most = _upper(members - caught, members, alpha / (2 * len(cuts)))
        alarms_at_most = _upper(false_alarms, others, alpha / (2 * len(cuts)))
        if max(missed_at_most, alarms_at_most) < 1:
            mu = -float(ndtri(alarms_at_most)) - float(ndtri(missed_at_most))
            if mu > best:
                best, counted = mu, (cut, caught)
    epsilon = gaussian_epsilon(max(best, 0.0), delta)
    return Bound(
        epsilon, *counted, "Gaussian DP Clopper-Pearson (Nasr et al. 2023)", rigorous=False
    )


def t_estimate(
    scores: FloatArray, included: BoolArray, delta: float, confidence: float = 0.95
) -> Bound:
    """Gaussian DP from the noncentral t of the difference in means, as an epsilon.

    Assumes normal scores of one variance, independent given the model: the tightest, and the
    first to be wrong. Right for inner products with Dirac canaries under Gaussian noise.

    Source: the noncentrality interval of Steiger, Fouladi 1997, "Noncentrality interval
        estimation"; Gaussian DP: Dong, Roth, Su 2019, "Gaussian Differential Privacy".
    """
    from scipy.stats import nct

    _ranked(scores, included)  # refuses what no statistic is defined for
    alpha = _alpha(delta, confidence, positive=True)
    inside, outside = scores[included], scores[~included]
    sizes = len(inside), len(outside)
    if min(sizes) < 2:
        raise ScoreError(f"expected two canaries in and two out, got {sizes[0]} and {sizes[1]}")
    freedom = sum(sizes) - 2
    spread = ((inside - inside.mean()) ** 2).sum() + ((outside - outside.mean()) ** 2).sum()
    root = math.sqrt(sizes[0] * sizes[1] / sum(sizes))
    apart = float(inside.mean() - outside.mean())
    t = apart / math.sqrt(spread / freedom) * root if spread > 0 else math.copysign(math.inf, apart)

    def refuted(_: tuple[int, int], mu: float) -> bool:
        return t == math.inf or float(nct.sf(t, freedom, mu * root)) <= alpha

    mu, _ = _best([(0, 0)], refuted)
    return Bound(gaussian_epsilon(mu, delta), 0, 0, "noncentral t", rigorous=False)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at ``delta`` of a Gaussian mechanism whose shift is ``mu`` standard deviations.

    Source: Dong, Roth, Su 2019, Corollary 2.13; Balle, Wang 2018, Theorem 8.
    """
    if mu <= 0:
        return 0.0

    def exceeds(epsilon: float) -> bool:
        first = float(ndtr(-epsilon / mu + mu / 2))
        second = math.exp(epsilon + float(log_ndtr(-epsilon / mu - mu / 2)))
        return first - second > delta

    return _largest(exceeds)


def guess_counts(canaries: int) -> tuple[int, ...]:
    """The grid: even numbers of guesses, each once, from two to all (all but one if odd)."""
    if canaries < 2:
        raise ScoreError(f"expected two canaries or more, got {canaries}")
    halves = {max(canaries // (2 * share), 1) for share in GUESS_SHARES}
    return tuple(2 * half for half in sorted(halves))


def _tries(scores: FloatArray, included: BoolArray) -> list[tuple[int, int]]:
    """For each count of the grid: guesses, and how many are right."""
    order, truth = _ranked(scores, included)
    found = []
    for guesses in guess_counts(len(order)):
        half = guesses // 2
        correct = int(truth[:half].sum()) + int((~truth[len(order) - half :]).sum())
        found.append((guesses, correct))
    return found


def _ranked(scores: FloatArray, included: BoolArray) -> tuple[npt.NDArray[np.intp], BoolArray]:
    """Canaries by falling score, and the truth of each in that order.

    Ties go by a fixed permutation, and not by position: who hands in all included canaries first
    would otherwise have ties guessed right.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(included)
    if values.ndim != 1 or truth.shape != values.shape or truth.dtype != np.bool_:
        raise ScoreError(
            f"expected a score and a truth value of each canary, got {values.shape} scores and "
            f"{truth.dtype} of shape {truth.shape}"
        )
    if not np.isfinite(values).all():
        raise ScoreError("expected finite scores, got NaN or infinity")
    if len(values) < 2 or values.min() == values.max():
        raise ScoreError(f"expected scores that differ, got {len(values)} that are all alike")
    ties = np.random.default_rng(len(values)).permutation(len(values))
    order = np.lexsort((ties, -values))
    return order, truth[order]


def _alpha(delta: float, confidence: float, *, positive: bool = False) -> float:
    if not 0 <= delta < 1 or (positive and delta == 0):
        raise ScoreError(f"expected a delta in {'(0, 1)' if positive else '[0, 1)'}, got {delta}")
    if not 0 < confidence < 1:
        raise ScoreError(f"expected a confidence between 0 and 1, got {confidence}")
    return 1 - confidence


def _cuts(guesses: int, canaries: int) -> tuple[int, int]:
    return guesses // 2, canaries - guesses // 2


def _upper(errors: int, trials: int, alpha: float) -> float:
    return 1.0 if errors == trials else float(betaincinv(errors + 1, trials - errors, 1 - alpha))


def _best(
    tries: list[tuple[int, int]], refuted: Callable[[tuple[int, int], float], bool]
) -> tuple[float, tuple[int, int]]:
    """The largest value that any try refutes; without one, the try with the best share."""
    best, which = 0.0, max(tries, key=lambda tried: tried[1] / max(tried[0], 1))
    for tried in tries:
        if refuted(tried, best):
            best, which = _largest(partial(refuted, tried), best), tried
    return best, which


def _largest(holds: Callable[[float], bool], low: float = 0.0) -> float:
    """The largest value that holds, from below: what is returned was itself seen to hold."""
    if not holds(low):
        return low
    high = max(1.0, 2 * low)
    while holds(high):
        low, high = high, 2 * high
        if low >= MOST:
            return low
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
