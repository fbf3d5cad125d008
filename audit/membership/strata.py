"""Statistics over sites: records are compared with records of their own site only.

An AUC over several sites is the mean of theirs, weighted by how many pairs' worth each brings; its
variance follows from theirs, because no two sites share a record.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from scipy.stats import rankdata

from audit.intervals import (
    AucEstimate,
    clopper_pearson,
    delong,
    delong_difference,
    permutation_p,
)
from audit.membership.targets import BoolArray
from audit.score_checks import FloatArray
from audit.verdicts import Interval

_CHUNK_NUMBERS: Final = 4_000_000
OVERALL: Final = ""
"""In place of a site's name: all sites together."""


@dataclass(frozen=True)
class Stratum:
    """Records that may be compared with each other, and their scores by name."""

    site: str
    member: BoolArray
    scores: Mapping[str, FloatArray]

    def sides(self, name: str) -> tuple[FloatArray, FloatArray]:
        """Scores of the members, and of the others."""
        values = self.scores[name]
        return values[self.member], values[~self.member]

    @property
    def weight(self) -> float:
        """One over what an AUC's variance is proportional to where there is no effect."""
        inside = int(self.member.sum())
        return inside * (len(self.member) - inside) / (len(self.member) + 1)


@dataclass(frozen=True)
class Difference:
    """AUC of one minus AUC of another over the same records, for all strata."""

    value: float
    deviation: float
    """Its standard deviation."""
    p_value: float
    """One-sided: that the first is not better."""


def alike(values: FloatArray) -> bool:
    """Whether scores say nothing because all are the same."""
    return bool(values.min() == values.max())


def auc_over(strata: Sequence[Stratum], name: str, confidence: float) -> AucEstimate:
    """AUC over all strata, with its interval.

    Where nothing in any stratum is out of order, the interval is that of disjoint pairs, as in
    ``audit.intervals.delong``.

    Raises:
        ScoreError: Scores are NaN, or all alike in a stratum.
    """
    parts = [delong(*stratum.sides(name), confidence) for stratum in strata]
    if len(parts) == 1:
        return parts[0]
    weights = _weights(strata)
    auc = float(sum(w * part.auc for w, part in zip(weights, parts, strict=True)))
    variance = float(sum(w * w * part.variance for w, part in zip(weights, parts, strict=True)))
    return AucEstimate(auc, variance, _auc_interval(auc, variance, strata, confidence))


def exceeds(
    strata: Sequence[Stratum], name: str, others: Sequence[Stratum], other_name: str | None = None
) -> Difference:
    """Whether one attack does better than another on the same records; see ``Stratum``.

    Args:
        strata: Scores of the first.
        name: Their name.
        others: Scores of the second; of the same records in the same order. Where all are alike
            they guess, at an AUC of one half.
        other_name: Their name, where it is another.
    """
    weights = _weights(strata)
    value = variance = 0.0
    smallest_p = 1.0
    for weight, first, second in zip(weights, strata, others, strict=True):
        guess = second.scores[other_name or name]
        if alike(guess):
            estimate = delong(*first.sides(name))
            gap, spread, p = estimate.auc - 0.5, estimate.variance, 1.0
        else:
            found = delong_difference(*first.sides(name), *second.sides(other_name or name))
            gap, spread, p = found.difference, found.variance, found.p_value
        value += weight * gap
        variance += weight * weight * spread
        smallest_p = min(smallest_p, p if gap > 0 else 1.0)
    if variance > 0:
        deviation = math.sqrt(variance)
        return Difference(value, deviation, NormalDist().cdf(-value / deviation))
    return Difference(value, 0.0, min(smallest_p * len(strata), 1.0))


def permutation_p_values(
    strata: Sequence[Stratum],
    names: Sequence[str],
    generator: np.random.Generator,
    *,
    draws: int,
    two_sided: bool = False,
) -> dict[tuple[str, str], float]:
    """P-values of AUCs by name and site: for all sites (``OVERALL``), and where several for each.

    **Guarantees**: Exact at any number of records where members and others are exchangeable
    within each stratum: who is a member is permuted there, and nowhere else.

    Args:
        strata: Several of one site are taken together.
        names: Of the scores.
        generator: Of the audit's seed.
        draws: Permutations.
        two_sided: Whether scores that are smaller for members count as well.
    """
    sites = sorted({stratum.site for stratum in strata})
    sums = {site: np.zeros((draws + 1, len(names))) for site in (*sites, OVERALL)}
    totals = dict.fromkeys(sums, 0.0)
    for stratum in strata:
        aucs = _permuted_aucs(stratum, names, generator, draws)
        for site in (stratum.site, OVERALL):
            sums[site] += stratum.weight * (aucs - 0.5)
            totals[site] += stratum.weight
    found = {}
    for site in (OVERALL, *sites) if len(sites) > 1 else (OVERALL,):
        gaps = sums[site] / totals[site]
        gaps = np.abs(gaps) if two_sided else gaps
        for column, name in enumerate(names):
            found[name, site] = permutation_p(float(gaps[0, column]), gaps[1:, column])
    return found


def _permuted_aucs(
    stratum: Stratum, names: Sequence[str], generator: np.random.Generator, draws: int
) -> FloatArray:
    """AUCs (1 + draws, names), the observed ones first: ranks summed over those held out."""
    ranks = np.stack([rankdata(stratum.scores[name]) for name in names])  # (names, n)
    n = len(stratum.member)
    out = ~stratum.member
    held = int(out.sum())
    sums = [ranks[:, out].sum(axis=1)[None]]
    step = max(_CHUNK_NUMBERS // n, 1)
    for start in range(0, draws, step):
        count = min(step, draws - start)
        keys = generator.random((count, n), dtype=np.float32)
        chosen = np.argpartition(keys, held - 1, axis=1)[:, :held]
        sums.append(ranks[:, chosen].sum(axis=2).T)
    above = np.concatenate(sums) - held * (held + 1) / 2
    return np.asarray(1 - above / (held * (n - held)), dtype=np.float64)


def _weights(strata: Sequence[Stratum]) -> FloatArray:
    weights = np.array([stratum.weight for stratum in strata])
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _auc_interval(
    auc: float, variance: float, strata: Sequence[Stratum], confidence: float
) -> Interval:
    if auc in (0.0, 1.0) or variance == 0:
        pairs = sum(min(int(s.member.sum()), int((~s.member).sum())) for s in strata)
        exact = clopper_pearson(round(auc * pairs), pairs, confidence)
        return exact.model_copy(update={"method": "Clopper-Pearson (disjoint pairs)"})
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(variance) / (auc * (1 - auc))
    middle = math.log(auc / (1 - auc))
    low, high = (1 / (1 + math.exp(-end)) for end in (middle - half, middle + half))
    return Interval(low=low, high=high, confidence=confidence, method="DeLong (log-odds), by site")
