"""Random tables with fixed margins: permuted labels, drawn from the counts alone."""

import numpy as np

from audit.score_checks import IntArray


def tables_with_margins(
    rows: IntArray, columns: IntArray, rng: np.random.Generator, draws: int
) -> IntArray:
    """Tables (draws, rows, columns) as permuting the labels of all records would give them.

    Source: cell by cell from the conditional hypergeometric law: Patefield 1981, AS 159.
    """
    result = np.zeros((draws, len(rows), len(columns)), dtype=np.int64)
    left = np.tile(columns, (draws, 1))
    for group, size in enumerate(rows[:-1]):
        wanted = np.full(draws, size, dtype=np.int64)
        for outcome in range(len(columns) - 1):
            rest = left[:, outcome + 1 :].sum(axis=1)
            result[:, group, outcome] = rng.hypergeometric(left[:, outcome], rest, wanted)
            wanted -= result[:, group, outcome]
        result[:, group, -1] = wanted
        left -= result[:, group]
    result[:, -1] = left
    return result
