"""Whether a model's confidence means the same for every group."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from audit.bias.rates import MIN_CELL
from audit.bias.tallies import ScoredSite
from audit.score_checks import checked_scores
from audit.verdicts import Cell, Table
from core.record_counts import Attributes

FloatArray = npt.NDArray[np.float64]
_BINS: Final = 10


def calibration_error(confidence: FloatArray, right: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error over ten bins of equal width.

    Raises:
        ScoreError: A confidence is not a number, or there is none.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3.
    """
    bins = np.minimum(
        (checked_scores(confidence, "confidences") * _BINS).astype(np.int64), _BINS - 1
    )
    sizes = np.bincount(bins, minlength=_BINS)
    gap = np.bincount(bins, confidence - right, _BINS)
    return float(np.abs(gap).sum() / sizes.sum())


def group_masks(
    attributes: Attributes, groups: Sequence[Mapping[str, str]]
) -> list[tuple[str, str, npt.NDArray[np.bool_]]]:
    """Each attribute's each value, and which records have it."""
    return [
        (name, value, np.asarray([each.get(name) == value for each in groups], dtype=np.bool_))
        for name, values in attributes
        for value in values
    ]


def score_table(
    sites: Sequence[ScoredSite], attributes: Attributes, *, held_out_only: bool
) -> Table:
    """Loss, confidence and calibration of each group."""
    kept = [s.held_out if held_out_only else np.ones_like(s.held_out) for s in sites]
    probabilities = np.concatenate([s.probabilities[k] for s, k in zip(sites, kept, strict=True)])
    labels = np.concatenate([s.labels[k] for s, k in zip(sites, kept, strict=True)])
    losses = np.concatenate([s.losses[k] for s, k in zip(sites, kept, strict=True)])
    groups = [
        g
        for s, k in zip(sites, kept, strict=True)
        for g, use in zip(s.groups, k, strict=True)
        if use
    ]
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    rows: list[tuple[Cell, ...]] = []
    for name, value, mask in group_masks(attributes, groups):
        if mask.sum() < MIN_CELL:
            rows.append((name, value, None, None, None, None))
            continue
        error = calibration_error(confidence[mask], right[mask])
        figures = (losses[mask].mean(), confidence[mask].mean(), right[mask].mean(), error)
        rows.append((name, value, *(round(float(figure), 6) for figure in figures)))
    return Table(
        title="Loss and calibration by group",
        columns=("attribute", "group", "loss", "mean confidence", "accuracy", "calibration error"),
        rows=tuple(rows),
        note=f"Groups of fewer than {MIN_CELL} records are suppressed. The error of a small group "
        "is overstated: its bins hold few records.",
    )
