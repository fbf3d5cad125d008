"""M1: what would help? Remedies tried on the released model, before and after, on unseen records.

Thresholds by group and reweighting are fairlearn's; calibration is one temperature for each group.
Fitted on one half of the persons who were not in the training and shown on the other half, so
that no remedy is judged on what it was fitted to.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from audit.bias.calibration import calibration_error
from audit.bias.groups import why_not
from audit.bias.rates import MIN_CELL
from audit.bias.tallies import BoolArray, probabilities_of
from audit.subject import Subject
from audit.verdicts import (
    FULL,
    AuditTest,
    Budget,
    Cell,
    Measure,
    NotRun,
    Table,
    TestCard,
    TestResult,
    Verdict,
)
from core.data.records import Record, iterate

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_TEMPERATURES: Final = np.geomspace(0.25, 8.0, 61)
_SMALLEST: Final = 1e-12


@dataclass(frozen=True)
class Unseen:
    """Probabilities of records that no training saw, with one attribute."""

    probabilities: FloatArray
    labels: IntArray
    groups: npt.NDArray[np.str_]
    fitting: BoolArray
    """Whether a remedy may be fitted to it; else it is shown on it."""


class Mitigation:
    """Tries remedies for the widest gap."""

    card = TestCard(
        id="M1",
        title="What would help",
        question="Would other thresholds, reweighting or calibration narrow the gaps?",
        tier="bias",
        threat_model="No attacker: what an operator of the model could do for who is served worse.",
        assumes=(
            "The operator knows each person's group when the model is used.",
            "Unseen records at hand stand for those to come.",
        ),
        suites=FULL,
        cost_seconds=10.0,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Fits and shows every remedy, attribute by attribute."""
        reason = why_not(subject)
        if reason is None and not subject.with_records:
            reason = "remedies are fitted to records, and none are at hand"
        if reason is not None:
            return NotRun(test=self.card.id, reason=reason)
        records = [r for site in subject.with_records.values() for r in iterate(site.held_out)]
        public = subject.public_records()
        records += [] if public is None else list(iterate(public))
        if len(records) < 2 * MIN_CELL:
            return NotRun(test=self.card.id, reason="too few records were held out of training")
        probabilities, labels = probabilities_of(subject, records)
        fitting = _halves(records, subject)
        tables = []
        for name, values in subject.config.audit.attributes.items():
            groups = np.asarray([record.groups.get(name, "") for record in records])
            known = np.isin(groups, values)
            unseen = Unseen(probabilities[known], labels[known], groups[known], fitting[known])
            tables += remedies(unseen, name, subject.config.task.labels)
        return _result(tables)


def _halves(records: Sequence[Record], subject: Subject) -> BoolArray:
    """One half of the persons, at random."""
    persons = [record.person or record.text for record in records]
    names = sorted(set(persons))
    coins = subject.seed.generator("bias/mitigation").random(len(names)) < 0.5
    side = dict(zip(names, coins, strict=True))
    return np.asarray([side[person] for person in persons], dtype=np.bool_)


def remedies(unseen: Unseen, attribute: str, labels: Sequence[str]) -> list[Table]:
    """Every remedy for one attribute, before and after; nothing where groups are too small."""
    fit, show = unseen.fitting, ~unseen.fitting
    names = [str(name) for name in np.unique(unseen.groups)]
    sizes = [int(((unseen.groups == name) & side).sum()) for name in names for side in (fit, show)]
    if len(names) < 2 or min(sizes) < MIN_CELL:
        return []
    label = _widest_label(unseen, names, len(labels))
    if label is None:
        return [_calibration_table(unseen, attribute, names)]
    return [
        _decision_table(unseen, attribute, names, label, labels[label]),
        _calibration_table(unseen, attribute, names),
    ]


def _widest_label(unseen: Unseen, names: Sequence[str], labels: int) -> int | None:
    """The label whose TPR differs most between groups, on the half for fitting."""
    right = unseen.probabilities.argmax(axis=1) == unseen.labels
    gaps = {}
    for label in range(labels):
        cells = [unseen.fitting & (unseen.groups == n) & (unseen.labels == label) for n in names]
        if min(int(cell.sum()) for cell in cells) >= MIN_CELL // 3:
            rates = [float(right[cell].mean()) for cell in cells]
            gaps[label] = max(rates) - min(rates)
    return max(gaps, key=gaps.__getitem__, default=None)


def _decision_table(
    unseen: Unseen, attribute: str, names: Sequence[str], label: int, word: str
) -> Table:
    truth = (unseen.labels == label).astype(np.int64)
    score = unseen.probabilities[:, label]
    show = ~unseen.fitting
    before = (unseen.probabilities.argmax(axis=1) == label).astype(np.int64)
    decisions = {
        "as released": before[show],
        "threshold by group": _thresholds(unseen, score, truth),
        "reweighting": _reweighted(unseen, score, truth),
    }
    rows: list[tuple[Cell, ...]] = []
    for remedy, decided in decisions.items():
        rates = [_tpr(truth[show], decided, unseen.groups[show] == name) for name in names]
        accuracy = float((decided == truth[show]).mean())
        known = [rate for rate in rates if rate is not None]
        gap = round(max(known) - min(known), 6) if len(known) == len(names) else None
        shown = (None if rate is None else round(rate, 6) for rate in rates)
        rows.append((remedy, round(accuracy, 6), gap, *shown))
    return Table(
        title=f"{word} against the rest, by {attribute}",
        columns=("remedy", "accuracy", "gap in TPR", *(f"TPR {name}" for name in names)),
        rows=tuple(rows),
        note="fairlearn's ThresholdOptimizer and ExponentiatedGradient, for equal TPR; fitted to "
        "one half of the unseen persons, shown on the other.",
    )


def _tpr(truth: IntArray, decided: IntArray, who: BoolArray) -> float | None:
    cell = who & (truth == 1)
    return float(decided[cell].mean()) if cell.any() else None


def _thresholds(unseen: Unseen, score: FloatArray, truth: IntArray) -> IntArray:
    """A threshold for each group.

    Source: Hardt et al. 2016, "Equality of Opportunity in Supervised Learning".
    """
    from fairlearn.postprocessing import ThresholdOptimizer
    from sklearn.linear_model import LogisticRegression

    fit = unseen.fitting
    features = _log_odds(score)
    scorer = LogisticRegression().fit(features[fit], truth[fit])
    optimizer = ThresholdOptimizer(
        estimator=scorer,
        constraints="true_positive_rate_parity",
        objective="balanced_accuracy_score",
        predict_method="predict_proba",
        prefit=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas and fairlearn, on their own calls
        optimizer.fit(features[fit], truth[fit], sensitive_features=unseen.groups[fit])
        decided = optimizer.predict(
            features[~fit], sensitive_features=unseen.groups[~fit], random_state=0
        )
    return np.asarray(decided, dtype=np.int64)


def _reweighted(unseen: Unseen, score: FloatArray, truth: IntArray) -> IntArray:
    """A head on the score, trained again and again on records weighted anew.

    Source: Agarwal et al. 2018, "A Reductions Approach to Fair Classification".
    """
    from fairlearn.reductions import ExponentiatedGradient, TruePositiveRateParity
    from sklearn.linear_model import LogisticRegression

    fit = unseen.fitting
    names = np.unique(unseen.groups)
    one_hot = (unseen.groups[:, None] == names[None]).astype(np.float64)
    features = np.concatenate([_log_odds(score), one_hot], axis=1)
    reduction = ExponentiatedGradient(
        LogisticRegression(), TruePositiveRateParity(difference_bound=0.02), max_iter=20
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reduction.fit(features[fit], truth[fit], sensitive_features=unseen.groups[fit])
        decided = reduction.predict(features[~fit], random_state=0)
    return np.asarray(decided, dtype=np.int64)


def _log_odds(score: FloatArray) -> FloatArray:
    kept = np.clip(score, _SMALLEST, 1 - _SMALLEST)
    return np.log(kept / (1 - kept))[:, None]


def _calibration_table(unseen: Unseen, attribute: str, names: Sequence[str]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    logs = np.log(np.maximum(unseen.probabilities, _SMALLEST))
    for name in names:
        who = unseen.groups == name
        fit, show = who & unseen.fitting, who & ~unseen.fitting
        temperature = best_temperature(logs[fit], unseen.labels[fit])
        before = _error(logs[show], unseen.labels[show])
        after = _error(logs[show] / temperature, unseen.labels[show])
        rows.append((name, int(show.sum()), *(round(v, 6) for v in (temperature, before, after))))
    return Table(
        title=f"Calibration by {attribute}",
        columns=("group", "records", "temperature", "error before", "error after"),
        rows=tuple(rows),
        note="Expected calibration error; one temperature for each group, fitted to one half of "
        "the unseen persons, shown on the other. No prediction changes.",
    )


def best_temperature(logs: FloatArray, labels: IntArray) -> float:
    """The temperature of the smallest loss.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """
    rows = np.arange(len(labels))
    losses = [-_normal(logs / value)[rows, labels].mean() for value in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])


def _normal(logs: FloatArray) -> FloatArray:
    return np.asarray(logs - np.logaddexp.reduce(logs, axis=1, keepdims=True), dtype=np.float64)


def _error(logs: FloatArray, labels: IntArray) -> float:
    probabilities = np.exp(_normal(logs))
    return calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)


def _result(tables: Sequence[Table]) -> TestResult:
    decisions = [table for table in tables if table.columns[0] == "remedy"]
    measures = []
    best = None
    for table in decisions:
        known = {str(row[0]): float(row[2]) for row in table.rows if row[2] is not None}
        if "as released" not in known:
            continue
        remedy = min(known, key=known.__getitem__)
        gain = known["as released"] - known[remedy]
        if best is None or gain > best[0]:
            best = (gain, remedy, table.title)
    if best is not None:
        measures.append(
            Measure(
                name="gap-removed",
                label=f"gap in TPR that the best remedy removes ({best[1]}: {best[2]})",
                value=best[0],
            )
        )
    headline = "No remedy could be fitted: too few unseen records of some group."
    if best is not None and best[0] > 0:
        headline = f"Of the gaps looked at, {best[1]} narrows that of {best[2]} by {best[0]:.3f}."
    elif tables:
        headline = "No remedy narrows a gap on records that it was not fitted to."
    return TestResult(
        test=Mitigation.card.id,
        verdict=Verdict.INCONCLUSIVE,
        headline=headline,
        measures=tuple(measures),
        tables=tuple(tables),
        notes=(
            "A comparison, no test: it decides nothing, so it neither passes nor fails.",
            "Thresholds and temperatures by group treat people by their group; whether the law "
            "allows that is not for this report to say.",
        ),
    )


TESTS: Final[tuple[AuditTest, ...]] = (Mitigation(),)
