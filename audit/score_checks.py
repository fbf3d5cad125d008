"""What no statistic of the audit accepts: NaN, nothing at all, counts that cannot be."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from core.errors import ScoreError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def checked_level(level: float) -> float:
    """A confidence, a power or a chance of a false alarm."""
    if not 0 < level < 1:
        raise ScoreError(f"expected a probability between 0 and 1, got {level}")
    return level


def check_counts(successes: int, trials: int) -> None:
    """Successes among trials."""
    if trials < 1 or not 0 <= successes <= trials:
        raise ScoreError(f"expected 0 to {trials} successes in 1 trial or more, got {successes}")


def checked_scores(values: FloatArray, name: str, dimensions: int | None = 1) -> FloatArray:
    """Finite numbers, one or more; ``dimensions`` of ``None`` allows any shape."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or (dimensions is not None and array.ndim != dimensions):
        raise ScoreError(f"expected {name}, one or more in a row, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ScoreError(f"expected finite {name}, got NaN or infinity")
    return array


def checked_p_values(p_values: Sequence[float]) -> FloatArray:
    """P-values of one family."""
    values = checked_scores(np.asarray(p_values), "p-values")
    if values.min() < 0 or values.max() > 1:
        raise ScoreError("expected p-values from 0 to 1")
    return values


def informative_tables(table_by_stratum: npt.NDArray[np.integer]) -> IntArray:
    """Counts (strata, groups, outcomes), without strata that no permutation changes."""
    table = np.asarray(table_by_stratum)
    if table.ndim != 3 or not np.issubdtype(table.dtype, np.integer) or table.min(initial=0) < 0:
        raise ScoreError(
            f"expected counts by stratum, group and outcome, got {table.dtype} of {table.shape}"
        )
    several = ((table.sum(axis=2) > 0).sum(axis=1) > 1) & ((table.sum(axis=1) > 0).sum(axis=1) > 1)
    if not several.any():
        raise ScoreError("expected a stratum with two groups and two outcomes, got none")
    return np.asarray(table[several], dtype=np.int64)
