"""Membership from histograms of losses: all that sites give away whose records stay with them.

The loss attack alone, and neither a control nor a blind baseline: that the held-out records were
drawn at random rests on the committed seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from audit.federated_counts import FederatedCounts, SiteCounts
from audit.intervals import holm
from audit.membership.claims import Claim, claim_of
from audit.report.words import at_most, percent
from audit.score_checks import FloatArray
from audit.subject import Subject
from audit.verdicts import (
    Figure,
    Interval,
    Measure,
    NotRun,
    Series,
    SmallestEffect,
    Table,
    TestResult,
    Verdict,
)

ALPHA: Final = 0.05
POWER: Final = 0.9
AUC_THAT_MATTERS: Final = 0.6
_ALL: Final = "all sites"
_MIN_RECORDS: Final = 10
_SURELY: Final = 4.0
"""Standard deviations of its noise by which a count of records must exceed 0 to divide by it."""


@dataclass(frozen=True)
class HistogramAuc:
    """AUC of the loss, from two histograms of it."""

    name: str
    auc: float
    deviation: float
    """Standard deviation of sampling and of the sites' noise together."""
    weight: float

    def interval(self, confidence: float) -> Interval:
        """Symmetric, cut to [0, 1]."""
        half = NormalDist().inv_cdf((1 + confidence) / 2) * self.deviation
        return Interval(
            low=min(max(self.auc - half, 0.0), 1.0),
            high=max(min(self.auc + half, 1.0), 0.0),
            confidence=confidence,
            method="normal, with the noise of the counts",
        )

    @property
    def p_value(self) -> float:
        """One-sided: that the AUC is at most one half."""
        return NormalDist().cdf(-(self.auc - 0.5) / self.deviation)


def histogram_auc(counts: SiteCounts) -> HistogramAuc | None:
    """How well the loss tells a site's members from its held-out records; smaller for members.

    **Guarantees**: The deviation holds the variance of the noise on every bin of both histograms,
    with that of the products of two noised counts.

    Returns:
        ``None`` where the counts, less their noise, may be of next to no records, or where all
        losses lie in one bin.
    """
    inside, outside = (np.asarray(row, dtype=np.float64) for row in counts.histogram)
    members, others = float(inside.sum()), float(outside.sum())
    least = _MIN_RECORDS + _SURELY * math.sqrt(counts.noise_variance * len(inside))
    if min(members, others) < least:
        return None
    # A member's loss in bin i is below an outsider's in bin j; within a bin it is a tie.
    below = np.triu(np.ones((len(inside), len(inside))), 1) + np.eye(len(inside)) / 2
    auc = float(inside @ below @ outside) / (members * others)
    by_member = below @ outside / others - auc
    by_other = inside @ below / members - auc
    variance = _of_sampling(inside, by_member) + _of_sampling(outside, by_other)
    variance += _of_noise(counts.noise_variance, below - auc, by_member, by_other, members, others)
    if variance <= 0:
        return None
    weight = members * others / (members + others + 1)
    return HistogramAuc(counts.site, auc, math.sqrt(variance), weight)


def _of_sampling(counts: FloatArray, deviations: FloatArray) -> float:
    """DeLong's, from placements by bin; noised counts may be negative, a variance is not."""
    total = float(counts.sum())
    return max(float(counts @ np.square(deviations)), 0.0) / (total * (total - 1))


def _of_noise(
    noise: float,
    kernel: FloatArray,
    by_member: FloatArray,
    by_other: FloatArray,
    members: float,
    others: float,
) -> float:
    first = noise * float(np.square(by_member).sum()) / members**2
    second = noise * float(np.square(by_other).sum()) / others**2
    return first + second + noise**2 * float(np.square(kernel).sum()) / (members * others) ** 2


def _together(parts: Sequence[HistogramAuc]) -> HistogramAuc:
    weights = np.array([part.weight for part in parts])
    shares = weights / weights.sum()
    auc = float(sum(w * part.auc for w, part in zip(shares, parts, strict=True)))
    deviations = [w * part.deviation for w, part in zip(shares, parts, strict=True)]
    return HistogramAuc(_ALL, auc, math.hypot(*deviations), float(weights.sum()))


def result_of_histograms(
    subject: Subject, test: str, counts: FederatedCounts
) -> TestResult | NotRun:
    """The result of the loss attack, from what the sites said."""
    parts = [part for part in map(histogram_auc, counts.sites) if part is not None]
    if not parts:
        reason = "The sites' histograms hold too few records for the noise in them."
        return NotRun(test=test, reason=reason)
    overall = _together(parts)
    rows = [overall, *parts] if len(parts) > 1 else [overall]
    p_values = holm([row.p_value for row in rows])
    effect = _smallest_effect(overall, len(rows))
    claim = claim_of(subject)
    matters = subject.config.audit.gates.max_membership_auc or AUC_THAT_MATTERS
    leaks = [row for row, p in zip(rows, p_values, strict=True) if p <= ALPHA]
    verdict, headline = _decide(overall, leaks, claim, matters, effect)
    return TestResult(
        test=test,
        verdict=verdict,
        headline=headline,
        measures=(
            Measure(
                name="membership-auc",
                label="AUC of the loss, from the sites' histograms",
                value=min(max(overall.auc, 0.0), 1.0),
                interval=overall.interval(1 - ALPHA),
                limit=None if claim is None else claim.largest_auc,
            ),
        ),
        smallest_effect=effect,
        p_value=min(p_values),
        tables=(_table(rows, p_values),),
        figures=(_figure(rows),),
        notes=(
            "Only the attack by loss can be made from histograms, and neither a control model nor "
            "a guess without a model stands beside it: stronger attacks may see more.",
            *_left_out(counts, parts),
        ),
    )


def _decide(
    overall: HistogramAuc,
    leaks: Sequence[HistogramAuc],
    claim: Claim | None,
    matters: float,
    effect: SmallestEffect,
) -> tuple[Verdict, str]:
    interval = overall.interval(1 - ALPHA)
    if leaks:
        worst = leaks[0] if leaks[0].name == _ALL else max(leaks, key=lambda row: row.auc)
        allowed = (
            "the run promised no privacy"
            if claim is None
            else f"the claimed epsilon of {at_most(claim.epsilon)} allows up to "
            f"{percent(claim.largest_auc)}%"
        )
        return Verdict.FAIL, (
            "Who has the released model can tell better than by guessing who was in the training "
            f"data ({worst.name}): right in {worst.auc:.0%} of the pairs of a member and an "
            f"outsider, where guessing gives 50%; {allowed}."
        )
    if max(interval.high, effect.value) <= matters:
        return Verdict.PASS, (
            "Losses do not tell members of the training data from outsiders: right in "
            f"{overall.auc:.0%} of the pairs, and surely in no more than {interval.high:.0%}."
        )
    return Verdict.INCONCLUSIVE, (
        "Losses did not tell members from outsiders, but with so few records and so much noise "
        f"nothing rules out that they do in {matters:.0%} of the pairs."
    )


def _smallest_effect(overall: HistogramAuc, tests: int) -> SmallestEffect:
    z = NormalDist().inv_cdf(1 - ALPHA / tests) + NormalDist().inv_cdf(POWER)
    return SmallestEffect(
        measure="AUC of the loss over all sites",
        value=min(0.5 + z * overall.deviation, 1.0),
        power=POWER,
        alpha=ALPHA,
    )


def _left_out(counts: FederatedCounts, parts: Sequence[HistogramAuc]) -> tuple[str, ...]:
    used = {part.name for part in parts}
    missing = [site.site for site in counts.sites if site.site not in used]
    if not missing:
        return ()
    return (f"Too few records for their noise, and left out: {', '.join(missing)}.",)


def _table(rows: Sequence[HistogramAuc], p_values: Sequence[float]) -> Table:
    cells = []
    for row, p in zip(rows, p_values, strict=True):
        interval = row.interval(1 - ALPHA / len(rows))
        ends = (round(interval.low, 4), round(interval.high, 4))
        cells.append((row.name, round(row.auc, 4), *ends, round(p, 5)))
    return Table(
        title="The loss attack by site",
        columns=("Site", "AUC", "from", "to", "p (corrected)"),
        rows=tuple(cells),
        note="The intervals hold for all rows at once, and hold the noise of the counts.",
    )


def _figure(rows: Sequence[HistogramAuc]) -> Figure:
    intervals = [row.interval(1 - ALPHA / len(rows)) for row in rows]
    return Figure(
        kind="intervals",
        title="How well losses tell members from outsiders",
        caption="Only an interval that lies above one half shows that the model gives anything "
        "away.",
        alternative=f"Intervals of the AUC of {rows[0].name} and of {len(rows) - 1} single sites; "
        f"over all it is {rows[0].auc:.3f}.",
        x_label="site",
        y_label="AUC",
        series=(
            Series(
                name="released model",
                x=tuple(row.name for row in rows),
                y=tuple(round(row.auc, 5) for row in rows),
                low=tuple(round(interval.low, 5) for interval in intervals),
                high=tuple(round(interval.high, 5) for interval in intervals),
            ),
        ),
        reference=0.5,
        reference_label="guessing",
    )
