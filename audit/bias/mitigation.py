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
# What a remedy may cost and still be named: a gap also closes where a group is levelled down.
GROUP_LOSS: Final = 0.05
ACCURACY_LOSS: Final = 0.02
_RELEASED: Final = "as released"


@dataclass(frozen=True)
class Unseen:
    """Probabilities of records that no training saw, with one attribute."""

    probabilities: FloatArray
    labels: IntArray
    groups: npt.NDArray[np.str_]
    fitting: BoolArray
    """Whether a remedy may be fitted to it; else it is shown on it."""


@dataclass(frozen=True)
class Trial:
    """What a remedy did to one gap, on records that it was not fitted to."""

    remedy: str
    gap_of: str
    gap: tuple[float, float]
    """Before and after."""
    accuracy: tuple[float, float]
    loser: str
    """The group's rate that fell most, or rose least."""
    loss: tuple[float, float]
    """That rate, before and after."""

    @property
    def gain(self) -> float:
        """By how much the gap is narrower."""
        return self.gap[0] - self.gap[1]

    @property
    def harms(self) -> bool:
        """Whether a group, or all together, lose more than a little."""
        lost, whole = self.loss[0] - self.loss[1], self.accuracy[0] - self.accuracy[1]
        return lost > GROUP_LOSS or whole > ACCURACY_LOSS

    @property
    def cost(self) -> str:
        """In words."""
        return (
            f"overall accuracy goes from {self.accuracy[0]:.3f} to {self.accuracy[1]:.3f}, and "
            f"{self.loser}, which fares worst by it, from {self.loss[0]:.3f} to {self.loss[1]:.3f}"
        )


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
        return judge_remedies(tables)


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
        _RELEASED: before[show],
        "threshold by group": _thresholds(unseen, score, truth),
        "reweighting": _reweighted(unseen, score, truth),
    }
    rows: list[tuple[Cell, ...]] = []
    for remedy, decided in decisions.items():
        rates = [_tpr(truth[show], decided, unseen.groups[show] == name) for name in names]
        right = decided == truth[show]
        accuracy = float(right.mean())
        known = [rate for rate in rates if rate is not None]
        gap = round(max(known) - min(known), 6) if len(known) == len(names) else None
        shown = [None if rate is None else round(rate, 6) for rate in rates]
        own = [round(float(right[unseen.groups[show] == name].mean()), 6) for name in names]
        rows.append((remedy, round(accuracy, 6), gap, *shown, *own))
    return Table(
        title=f"{word} against the rest, by {attribute}",
        columns=(
            *("remedy", "accuracy", "gap in TPR"),
            *(f"TPR {name}" for name in names),
            *(f"accuracy {name}" for name in names),
        ),
        rows=tuple(rows),
        note="fairlearn's ThresholdOptimizer and ExponentiatedGradient, for equal TPR; fitted to "
        "one half of the unseen persons, shown on the other. Accuracy is that of this label "
        "against the rest.",
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


def trials_of(table: Table) -> list[Trial]:
    """What each remedy of a table did; nothing where a rate is missing."""
    released = next(row for row in table.rows if row[0] == _RELEASED)
    found = []
    for row in table.rows:
        if row is released or None in (*row, *released):
            continue
        before, after = (np.asarray(which[1:], dtype=np.float64) for which in (released, row))
        worst = 2 + int((before[2:] - after[2:]).argmax())
        changes = list(zip(before.tolist(), after.tolist(), strict=True))
        found.append(
            Trial(
                remedy=str(row[0]),
                gap_of=table.title,
                gap=changes[1],
                accuracy=changes[0],
                loser=table.columns[1 + worst],
                loss=changes[worst],
            )
        )
    return found


def judge_remedies(tables: Sequence[Table]) -> TestResult:
    """The result of M1: the remedy of the largest gain of those that harm nobody much."""
    trials = [trial for t in tables if t.columns[0] == "remedy" for trial in trials_of(t)]
    narrow = sorted((trial for trial in trials if trial.gain > 0), key=lambda trial: -trial.gain)
    best = next((trial for trial in narrow if not trial.harms), None)
    return TestResult(
        test=Mitigation.card.id,
        verdict=Verdict.INCONCLUSIVE,
        headline=_headline(best, narrow, tables),
        measures=() if best is None else _measures(best),
        tables=tuple(tables),
        notes=(
            "A comparison, no test: it decides nothing, so it neither passes nor fails.",
            f"A remedy is named only where no group loses more than {100 * GROUP_LOSS:.0f} points "
            f"of TPR or accuracy, and all together no more than {100 * ACCURACY_LOSS:.0f}.",
            *_harmful(narrow),
            f"The best of {len(trials)} trials on the same records looks better than it is: try it "
            "on new records first.",
            "Thresholds and temperatures by group treat people by their group; whether the law "
            "allows that is not for this report to say.",
        ),
    )


def _measures(best: Trial) -> tuple[Measure, ...]:
    return (
        Measure(
            name="gap-removed",
            label=f"gap in TPR that the best remedy without harm removes ({best.remedy}: "
            f"{best.gap_of})",
            value=best.gain,
        ),
        Measure(
            name="gap-removed-accuracy",
            label="accuracy that it costs",
            value=best.accuracy[0] - best.accuracy[1],
            limit=ACCURACY_LOSS,
        ),
        Measure(
            name="gap-removed-loss",
            label=f"what it costs the group that fares worst by it ({best.loser})",
            value=best.loss[0] - best.loss[1],
            limit=GROUP_LOSS,
        ),
    )


def _headline(best: Trial | None, narrow: Sequence[Trial], tables: Sequence[Table]) -> str:
    if best is not None:
        return (
            f"Of the gaps looked at, {best.remedy} narrows that of {best.gap_of} from "
            f"{best.gap[0]:.3f} to {best.gap[1]:.3f}: {best.cost}."
        )
    if narrow:
        return "No remedy narrows a gap without harm: those that do level a group down."
    if tables:
        return "No remedy narrows a gap on records that it was not fitted to."
    return "No remedy could be fitted: too few unseen records of some group."


def _harmful(narrow: Sequence[Trial]) -> tuple[str, ...]:
    worst = next((trial for trial in narrow if trial.harms), None)
    if worst is None:
        return ()
    return (
        f"Passed over: {worst.remedy} takes {worst.gain:.3f} off the gap of {worst.gap_of}, but "
        f"{worst.cost}.",
    )


TESTS: Final[tuple[AuditTest, ...]] = (Mitigation(),)
