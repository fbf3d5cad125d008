"""Whether a rate depends on the group, labels permuted within site, from counts with noise.

Exact counts go to the plain permutation test. For noised ones the noise is drawn anew, of the
mechanism's own distribution, on every permuted table, so that it is part of what chance can do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from audit.bias.rates import Sums
from audit.bias.tallies import Tally
from audit.intervals import permutation_chi_square, permutation_p
from core.errors import ScoreError
from core.record_counts import IntArray

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Strata:
    """Parts and wholes of a rate; what is permuted is the group, within each stratum."""

    part: IntArray
    """(strata, groups)."""
    whole: IntArray
    part_noises: int
    """Noised numbers in a part, for each scale."""
    rest_noises: int
    """Noised numbers in a whole but not in its part, for each scale."""
    scales: tuple[tuple[tuple[float | None, ...], ...], ...]
    """Of the noise in each stratum's each group: a scale for each site that was added up."""

    @classmethod
    def within_sites(cls, sums: Sums, tally: Tally, groups: Sequence[int]) -> "Strata":
        """Groups, permuted within each site."""
        chosen = list(groups)
        return cls(
            part=sums.part[:, chosen],
            whole=sums.whole[:, chosen],
            part_noises=sums.part_noises,
            rest_noises=sums.rest_noises,
            scales=tuple(((scale,),) * len(chosen) for scale in tally.scales),
        )

    @classmethod
    def site_against_rest(cls, sums: Sums, tally: Tally, site: int) -> "Strata":
        """One site and all others, all of them in one stratum."""
        others = [other for other in range(len(tally.sites)) if other != site]

        def halves(counts: IntArray) -> IntArray:
            return np.asarray([[counts[site].sum(), counts[others].sum()]], dtype=np.int64)

        return cls(
            part=halves(sums.part),
            whole=halves(sums.whole),
            part_noises=sums.part_noises,
            rest_noises=sums.rest_noises,
            scales=(((tally.scales[site],), tuple(tally.scales[other] for other in others)),),
        )

    @property
    def exact(self) -> bool:
        """Whether there is no noise."""
        return all(s is None for stratum in self.scales for group in stratum for s in group)


def dependence(strata: Strata, rng: np.random.Generator, draws: int) -> float:
    """P-value of a rate being the same in all groups of each stratum.

    Args:
        strata: The counts.
        rng: Of the audit's seed.
        draws: Permutations.

    Returns:
        1 where no permutation could change anything.
    """
    part, whole = strata.part, strata.whole
    if strata.exact:
        try:
            return permutation_chi_square(np.stack([part, whole - part], axis=2), rng, draws)
        except ScoreError:
            return 1.0  # all alike: nothing depends on anything
    drawn_part = np.empty((draws, *part.shape), dtype=np.int64)
    drawn_whole = np.empty_like(drawn_part)
    for stratum, scales in enumerate(strata.scales):
        sizes, hits = _plausible(part[stratum], whole[stratum])
        permuted = _permuted(sizes, hits, rng, draws)
        for group, of_group in enumerate(scales):
            noise = _noise(strata.part_noises, of_group, draws, rng)
            rest = _noise(strata.rest_noises, of_group, draws, rng)
            drawn_part[:, stratum, group] = permuted[:, group] + noise
            drawn_whole[:, stratum, group] = sizes[group] + noise + rest
    expected = _expected(part[None], whole[None])[0]
    totals = np.maximum(whole.sum(axis=0), 1)
    rates = np.clip(expected / totals, 0.5 / totals, 1 - 0.5 / totals)
    weights = totals * rates * (1 - rates)
    observed = float(_statistic(part[None], whole[None], weights)[0])
    return permutation_p(observed, _statistic(drawn_part, drawn_whole, weights))


def _noise(
    terms: int, scales: tuple[float | None, ...], draws: int, rng: np.random.Generator
) -> IntArray:
    found = np.zeros(draws, dtype=np.int64)
    for scale in scales:
        found += laplace_sums(terms, scale, (draws,), rng)
    return found


def laplace_sums(
    terms: int, scale: float | None, shape: tuple[int, ...], rng: np.random.Generator
) -> IntArray:
    """Sums of ``terms`` discrete Laplace variables: the difference of two negative binomials."""
    if scale is None or terms == 0:
        return np.zeros(shape, dtype=np.int64)
    stop = 1 - float(np.exp(-1 / scale))
    return np.asarray(
        rng.negative_binomial(terms, stop, shape) - rng.negative_binomial(terms, stop, shape),
        dtype=np.int64,
    )


def _plausible(part: IntArray, whole: IntArray) -> tuple[IntArray, int]:
    """Sizes of the groups, and how many hits among all, that exact counts could have."""
    sizes = np.maximum(whole, 0)
    hits = int(np.clip(part.sum(), 0, sizes.sum()))
    return sizes, hits


def _permuted(sizes: IntArray, hits: int, rng: np.random.Generator, draws: int) -> IntArray:
    """Hits of each group (draws, groups), the hits dealt out at random."""
    left = np.full(draws, hits, dtype=np.int64)
    rest = int(sizes.sum())
    found = np.zeros((draws, len(sizes)), dtype=np.int64)
    for group, size in enumerate(sizes):
        found[:, group] = rng.hypergeometric(left, rest - left, int(size)) if size else 0
        left -= found[:, group]
        rest -= int(size)
    return found


def _expected(part: IntArray, whole: IntArray) -> FloatArray:
    """Hits of each group (draws, groups), had all of a site its rate."""
    totals = np.maximum(whole.sum(axis=2, keepdims=True), 1)
    rates = np.clip(part.sum(axis=2, keepdims=True) / totals, 0.0, 1.0)
    return np.asarray((whole * rates).sum(axis=1), dtype=np.float64)


def _statistic(part: IntArray, whole: IntArray, weights: FloatArray) -> FloatArray:
    gap = part.sum(axis=1) - _expected(part, whole)
    return np.asarray((gap * gap / weights).sum(axis=1), dtype=np.float64)
