"""From findings to a verdict.

FAIL: an attack on the released model beats chance at 5 % after Holm's correction over all attacks
and sites, its interval lies above one half, and it does better than on a control that knows neither
side. How much of that the claimed
epsilon allows is said beside it; how much the federation tolerates is a gate's to say.

INCONCLUSIVE: the alarm of a blind baseline or of the control (members and held-out records then
differ by themselves); chance beaten, but not by more than on the control; or too few records.

PASS: nothing of that, and the AUC that matters (the gate's, or 0.6) lies above every interval and
would have been found.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

import numpy as np

from audit.intervals import smallest_auc, tpr_at_fpr
from audit.membership.blind import LABELS
from audit.membership.claims import Claim, claim_of
from audit.membership.findings import ALARM, ALPHA, Findings, Row
from audit.membership.pictures import interval_figure, roc_figure
from audit.membership.strata import OVERALL, Stratum
from audit.report.words import at_most, percent
from audit.subject import Subject
from audit.verdicts import Measure, SmallestEffect, Table, TestResult, Verdict
from core.errors import ScoreError

AUC_THAT_MATTERS: Final = 0.6
POWER: Final = 0.9
RATES: Final = ((0.01, "1-percent", "1 %"), (0.001, "01-percent", "0.1 %"))

NOTES: Final = (
    "Attacks that were not tried may see more: only the claimed epsilon bounds all of them.",
    "One record of each person, and no text that several have, was used; a claimed epsilon covers "
    "one record, and a person with several is exposed more.",
    "These figures were computed from the records themselves and are not covered by the run's "
    "epsilon. Which records are most exposed stays with their site.",
)


def result_of(subject: Subject, test: str, findings: Findings) -> TestResult:
    """The result: verdict, measures, tables and figures."""
    claim = claim_of(subject)
    matters = subject.config.audit.gates.max_membership_auc or AUC_THAT_MATTERS
    effect = _smallest_effect(findings)
    verdict, headline = _decide(findings, claim, matters, effect)
    return TestResult(
        test=test,
        verdict=verdict,
        headline=headline,
        measures=_measures(findings, claim),
        smallest_effect=effect,
        p_value=min(row.p_value for row in findings.rows),
        tables=(_attack_table(findings), _baseline_table(findings)),
        figures=(interval_figure(findings), roc_figure(findings)),
        notes=(f"The control is {findings.control}.", *_rate_notes(findings), *NOTES),
    )


def _decide(
    findings: Findings, claim: Claim | None, matters: float, effect: SmallestEffect
) -> tuple[Verdict, str]:
    alarm, leaks, best = findings.alarm, findings.leaks, findings.best
    if alarm is not None:
        return Verdict.INCONCLUSIVE, (
            f"Members and held-out records{_at(alarm.site)} differ by themselves: {alarm.what} "
            "tells them apart, so that nothing can be said of the released model."
        )
    if leaks:
        return Verdict.FAIL, _leak(leaks[0], claim)
    if min(row.p_value for row in findings.rows) <= ALPHA:
        return Verdict.INCONCLUSIVE, (
            "An attack beats guessing, but not by more than on a model that knows none of the "
            "records: it may be chance."
        )
    high = max(row.estimate.interval.high for row in findings.overall)
    if high <= matters and effect.value <= matters:
        return Verdict.PASS, (
            "No attack told members of the training data from outsiders better than guessing: the "
            f"best was right in {best.estimate.auc:.0%} of the pairs of one of each, and surely in "
            f"no more than {high:.0%}."
        )
    return Verdict.INCONCLUSIVE, (
        "No attack told members of the training data from outsiders, but there are too few "
        f"held-out records to rule out that one is right in {matters:.0%} of the pairs."
    )


def _leak(row: Row, claim: Claim | None) -> str:
    interval = row.estimate.interval
    sentence = (
        "Who has the released model can tell better than by guessing who was in the training data"
        f"{_at(row.site)}: right in {row.estimate.auc:.0%} of the pairs of a member and an "
        f"outsider ({interval.low:.0%} to {interval.high:.0%}), where guessing gives 50%"
    )
    if claim is None:
        return sentence + "; the run promised no privacy."
    if interval.low > claim.largest_auc:
        return sentence + (
            f"; that is more than the claimed epsilon of {at_most(claim.epsilon)} allows."
        )
    return sentence + (
        f"; the claimed epsilon of {at_most(claim.epsilon)} allows up to "
        f"{percent(claim.largest_auc)}%."
    )


def _measures(findings: Findings, claim: Claim | None) -> tuple[Measure, ...]:
    best, worst = findings.best, findings.worst
    limit = None if claim is None else claim.largest_auc
    return (
        Measure(
            name="membership-auc",
            label=f"AUC of the best attack ({best.attack.label})",
            value=best.estimate.auc,
            interval=best.estimate.interval,
            limit=limit,
        ),
        Measure(
            name="membership-auc-worst-site",
            label=f"AUC of the best attack at any site ({worst.attack.label}{_at(worst.site)})",
            value=worst.estimate.auc,
            interval=worst.estimate.interval,
            limit=limit,
        ),
        Measure(
            name="membership-control-auc",
            label="AUC of the same attack on a model that knows neither side",
            value=0.5 if best.control is None else best.control.auc,
            interval=None if best.control is None else best.control.interval,
        ),
        Measure(
            name="membership-advantage",
            label="AUC beyond the control",
            value=best.beyond_control.value,
        ),
        *_rates(findings),
    )


def _rates(findings: Findings) -> list[Measure]:
    measures = []
    inside, outside = pooled(findings.strata, findings.best.attack.name)
    for rate, name, label in RATES:
        try:
            found = tpr_at_fpr(inside, outside, rate)
        except ScoreError:
            continue
        measures.append(
            Measure(
                name=f"membership-tpr-at-{name}",
                label=f"Members found at a false positive rate of {label}",
                value=found.tpr,
                interval=found.interval,
            )
        )
    return measures


def _rate_notes(findings: Findings) -> tuple[str, ...]:
    stated = {measure.name for measure in _rates(findings)}
    missing = [label for _, name, label in RATES if f"membership-tpr-at-{name}" not in stated]
    if not missing:
        return ()
    return (
        f"Too few held-out records for a true positive rate at {' and '.join(missing)} false "
        "positives: ten of them would have to lie above the threshold.",
    )


def pooled(
    strata: Sequence[Stratum], name: str
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], ...]:
    """Scores of the members and of the others of all sites, as one attacker ranks them."""
    sides = [stratum.sides(name) for stratum in strata]
    return tuple(np.concatenate(side) for side in zip(*sides, strict=True))


def _smallest_effect(findings: Findings) -> SmallestEffect:
    """What all that FAIL asks for would have shown, over all sites."""
    inside, outside = (sum(counts) for counts in zip(*map(_counts, findings.strata), strict=True))
    beyond_chance = smallest_auc(inside, outside, POWER, ALPHA / len(findings.rows))
    z = NormalDist().inv_cdf(1 - ALPHA) + NormalDist().inv_cdf(POWER)
    beyond_control = 0.5 + z * findings.best.beyond_control.deviation
    return SmallestEffect(
        measure="AUC of an attack over all sites",
        value=min(max(beyond_chance, beyond_control), 1.0),
        power=POWER,
        alpha=ALPHA,
    )


def _counts(stratum: Stratum) -> tuple[int, int]:
    inside = int(stratum.member.sum())
    return inside, len(stratum.member) - inside


def _attack_table(findings: Findings) -> Table:
    return Table(
        title="Every attack, at every site",
        columns=(
            "Attack",
            "Site",
            "AUC",
            "from",
            "to",
            "p (corrected)",
            "AUC on the control",
            "p of being better than on the control",
        ),
        rows=tuple(
            (
                row.attack.label,
                row.site or "all",
                round(row.estimate.auc, 4),
                round(row.estimate.interval.low, 4),
                round(row.estimate.interval.high, 4),
                round(row.p_value, 5),
                None if row.control is None else round(row.control.auc, 4),
                round(row.beyond_control.p_value, 5),
            )
            for row in findings.rows
        ),
        note="Records are compared with records of their own site. The intervals of all sites "
        "together hold for all attacks at once (Bonferroni), those by site for all sites as well.",
    )


def _baseline_table(findings: Findings) -> Table:
    return Table(
        title="Guessing without any model",
        columns=("From", "AUC", "from", "to"),
        rows=tuple(
            (
                LABELS[name],
                round(found.auc, 4),
                round(found.interval.low, 4),
                round(found.interval.high, 4),
            )
            for name, found in findings.baselines.items()
        ),
        note=f"Smallest p-value after correction over all sites: {findings.baseline_p:.4f}. The "
        f"alarm is raised at {ALARM}.",
    )


def _at(site: str) -> str:
    return "" if site == OVERALL else f" at {site}"
