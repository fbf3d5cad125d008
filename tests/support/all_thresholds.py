"""The search over all thresholds with hindsight that published values of other auditors rest on.

The counts at every threshold on the convex hull of the ROC curve, as in jax_privacy's
``CanaryScoreAuditor`` with its Bonferroni strategy. Cloister does not search like this: its grid
is fixed beforehand. It is here so that the bound of each count can be compared.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

FloatArray = npt.NDArray[np.float64]


def quantile_scores(shift: float, count: int) -> FloatArray:
    """Scores that are normal to the letter."""
    return np.asarray(ndtri((np.arange(count) + 0.5) / count) + shift)


def hull_counts(inside: FloatArray, outside: FloatArray) -> Iterator[tuple[int, int]]:
    """Guesses and how many are right where whatever scores at least a threshold is said in."""
    thresholds = np.append(np.union1d(inside, outside), np.inf)
    points = np.stack(
        [np.searchsorted(np.sort(side), thresholds) for side in (inside, outside)], axis=1
    )
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
