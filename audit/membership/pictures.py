"""The figures of a membership test, as their data."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from audit.intervals import AucEstimate
from audit.membership.blind import LABELS
from audit.membership.findings import Findings
from audit.membership.strata import Stratum
from audit.score_checks import FloatArray
from audit.verdicts import Figure, Series

# False positive rates: evenly spaced, and evenly by factors at the small end.
_RATES: Final = tuple(
    round(float(rate), 5)
    for rate in np.unique(np.concatenate([np.linspace(0, 1, 51), np.geomspace(1e-3, 0.02, 12)]))
)


def interval_figure(findings: Findings) -> Figure:
    """AUC by attack, with the control's and the blind baselines'."""
    rows = findings.overall
    controls = [(row.attack.label, row.control) for row in rows if row.control is not None]
    baselines = [(LABELS[name], found) for name, found in findings.baselines.items()]
    series = [
        _points("released model", [(row.attack.label, row.estimate) for row in rows]),
        _points("control: knows no record", controls),
        _points("no model at all", baselines),
    ]
    best = findings.best
    return Figure(
        kind="intervals",
        title="How well members are told from outsiders",
        caption="Only where the released model's interval lies above one half, and above the "
        "control's, has the model given anything away.",
        alternative=f"Intervals of the AUC of {len(rows)} attacks on the released model and on the "
        f"control, and of {len(baselines)} baselines without a model; the best attack, "
        f"{best.attack.label}, reaches {best.estimate.auc:.3f}.",
        x_label="attack",
        y_label="AUC",
        series=tuple(one for one in series if one.x),
        reference=0.5,
        reference_label="guessing",
    )


def roc_figure(findings: Findings) -> Figure:
    """The best attack's curve, on the released model and on the control."""
    best = findings.best
    name = best.attack.name
    series = [Series(name="released model", x=_RATES, y=_curve(findings.strata, name))]
    if best.control is not None:
        curve = _curve(findings.control_strata, name)
        series.append(Series(name="control: knows no record", x=_RATES, y=curve))
    series.append(Series(name="guessing", x=_RATES, y=_RATES))
    return Figure(
        kind="curve",
        title=f"Members found against outsiders accused ({best.attack.label})",
        caption="A curve on the diagonal is guessing. The small rates on the left count most: "
        "there an attacker is sure of those he names.",
        alternative="ROC curves of the best attack on the released model and on the control, "
        f"beside the diagonal; the area under the first is {best.estimate.auc:.3f}.",
        x_label="false positive rate",
        y_label="true positive rate",
        series=tuple(series),
    )


def _points(name: str, estimates: Sequence[tuple[str, AucEstimate]]) -> Series:
    return Series(
        name=name,
        x=tuple(label for label, _ in estimates),
        y=tuple(round(found.auc, 5) for _, found in estimates),
        low=tuple(round(found.interval.low, 5) for _, found in estimates),
        high=tuple(round(found.interval.high, 5) for _, found in estimates),
    )


def _curve(strata: Sequence[Stratum], name: str) -> tuple[float, ...]:
    """True positive rates at ``_RATES``, each site with thresholds of its own, averaged."""
    weights = np.array([stratum.weight for stratum in strata])
    rates = np.stack([_rates(*stratum.sides(name)) for stratum in strata])
    mean = weights @ rates / weights.sum()
    return tuple(round(float(rate), 5) for rate in mean)


def _rates(inside: FloatArray, outside: FloatArray) -> FloatArray:
    """Share of members above thresholds that let so many of the others through; ties excluded."""
    ordered = np.sort(outside)[::-1]
    allowed = np.floor(np.array(_RATES) * len(ordered) + 1e-9).astype(np.int64)
    thresholds = np.append(ordered, -np.inf)[allowed]
    above = np.searchsorted(np.sort(inside), thresholds, side="right")
    return np.asarray(1 - above / len(inside), dtype=np.float64)
