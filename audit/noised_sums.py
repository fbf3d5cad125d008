"""Where a sum of noised counts lies: exactly, from the distribution of the noise itself."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from audit.score_checks import checked_level
from audit.verdicts import Interval
from core.errors import ScoreError

_TAIL: Final = 14.0
"""A mass of e^-14, and less, is folded: a millionth."""
_MAX_POINTS: Final = 1 << 22

Terms = Mapping[float, int]


def noise_variance(scale: float | None) -> float:
    """Variance of discrete Laplace noise, which falls by exp(-1 / scale) a step; 0 for none."""
    if scale is None:
        return 0.0
    q = float(np.exp(-1.0 / scale))
    return 2.0 * q / (1.0 - q) ** 2


def noise_reach(terms: Terms, confidence: float = 0.95) -> int:
    """The smallest r with P[|noise| <= r] >= ``confidence``, of a sum of independent noises.

    Args:
        terms: How many noises of each scale are added up.
        confidence: In (0, 1).

    Raises:
        ScoreError: A scale or a number of terms is none, or the sum is too wide to be computed.
    """
    checked_level(confidence)
    if any(scale <= 0 or count < 0 for scale, count in terms.items()):
        raise ScoreError("expected scales above 0 and numbers of terms, got others")
    if not any(terms.values()):
        return 0
    masses = _magnitudes(terms)
    return int(np.searchsorted(np.cumsum(masses), confidence - 1e-9))


def sum_interval(value: int, terms: Terms, confidence: float = 0.95) -> Interval:
    """Where the sum without its noise lies.

    **Guarantees**: Covers it with at least ``confidence``; no shorter interval around ``value``
    that ends on whole numbers does.

    Raises:
        ScoreError: See ``noise_reach``.
    """
    reach = noise_reach(terms, confidence)
    return Interval(
        low=float(value - reach),
        high=float(value + reach),
        confidence=confidence,
        method="discrete Laplace",
    )


def _magnitudes(terms: Terms) -> npt.NDArray[np.float64]:
    """P[|sum| = r] for r = 0, 1, ...

    By the characteristic function, whose values at the roots of unity give the distribution
    folded at their number; so many are taken that what is folded does not count.
    """
    deviation = sum(count * noise_variance(scale) for scale, count in terms.items()) ** 0.5
    width = 2.0 * _TAIL * (deviation + max(terms))
    points = 1 << max(int(np.ceil(np.log2(2.0 * width))), 6)
    if points > _MAX_POINTS:
        raise ScoreError(f"expected a sum of noise narrower than {_MAX_POINTS}, got a wider one")
    angles = 2.0 * np.pi * np.arange(points // 2 + 1) / points
    transform = np.ones_like(angles)
    for scale, count in terms.items():
        q = np.exp(-1.0 / scale)
        transform *= ((1.0 - q) ** 2 / (1.0 - 2.0 * q * np.cos(angles) + q * q)) ** count
    masses = np.fft.irfft(transform, points).clip(min=0.0)
    half = masses[: points // 2].copy()
    half[1:] += masses[: points // 2 : -1]
    magnitudes: npt.NDArray[np.float64] = half / half.sum()
    return magnitudes
