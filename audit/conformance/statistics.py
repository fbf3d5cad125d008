"""What the conformance tests compute from noise and from samples.

A conformance test fails a correct run at most once in 500: with eight of them, five of which rest
on chance at all, a correct run is accused at most once in 100.
"""

import math
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri, gammaincc

from audit.verdicts import Interval
from core.errors import ScoreError

FloatArray = npt.NDArray[np.float64]

ALPHA: Final = 0.002
"""Of one conformance test: the chance to fail a correct run."""
POWER: Final = 0.95


def sigma_interval(sum_of_squares: float, count: int, confidence: float) -> Interval:
    """Where the standard deviation of centred normal values lies: exact, by chi-square.

    Raises:
        ScoreError: No value, or a sum that is not finite.
    """
    if count < 1 or not 0 <= sum_of_squares < math.inf:
        raise ScoreError(f"expected one finite value or more, got {count} of {sum_of_squares}")
    tail = (1 - confidence) / 2
    # chdtri inverts the upper tail
    return Interval(
        low=math.sqrt(sum_of_squares / float(chdtri(count, tail))),
        high=math.sqrt(sum_of_squares / float(chdtri(count, 1 - tail))),
        confidence=confidence,
        method="chi-square",
    )


def smallest_sigma_gap(count: int, confidence: float) -> float:
    """The smallest relative lack of noise that ``sigma_interval`` shows with ``POWER``."""
    z = NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(POWER)
    return min(1.0, z / math.sqrt(2 * count))


def ratio_interval(first: FloatArray, second: FloatArray, confidence: float) -> Interval:
    """Where the ratio of two standard deviations of centred normal values lies, by F.

    Raises:
        ScoreError: One of them is all zeros.
    """
    from scipy.special import fdtri

    ratio = _scale(first) / _scale(second)
    tail, sizes = (1 - confidence) / 2, (len(first), len(second))
    low, high = (float(fdtri(*sizes, q)) for q in (1 - tail, tail))
    return Interval(
        low=ratio / math.sqrt(low), high=ratio / math.sqrt(high), confidence=confidence, method="F"
    )


def normality_p_value(values: FloatArray) -> float:
    """Kolmogorov-Smirnov against the centred normal law of the values' own deviation.

    Guarantees:
        Conservative: a deviation taken from the values makes the statistic smaller.

    Raises:
        ScoreError: The values are all zeros.
    """
    from scipy.stats import kstest

    return float(kstest(values / _scale(values), "norm").pvalue)


def self_correlation(values: FloatArray) -> tuple[float, float]:
    """The largest correlation of a sequence with itself shifted, and its p-value over all shifts.

    Shifts up to half the length: whatever part of a keystream comes twice, in any distance,
    shows.

    Raises:
        ScoreError: The values are all zeros.
    """
    scaled = values / _scale(values)
    size = len(scaled)
    spectrum = np.fft.rfft(scaled, 2 * size)
    products = np.fft.irfft(np.abs(spectrum) ** 2, 2 * size)[1 : size // 2 + 1]
    return _largest(products, size - np.arange(1, size // 2 + 1))


def cross_correlation(first: FloatArray, second: FloatArray) -> tuple[float, float]:
    """The largest correlation of two sequences of one length at any (circular) shift, and its
    p-value over all shifts.

    Raises:
        ScoreError: One of them is all zeros, or they differ in length.
    """
    if len(first) != len(second):
        raise ScoreError(f"expected as many values, got {len(first)} and {len(second)}")
    left, right = np.fft.rfft(first / _scale(first)), np.fft.rfft(second / _scale(second))
    products = np.fft.irfft(left * right.conj(), len(first))
    return _largest(products, np.full(len(first), len(first)))


def smallest_correlation(count: int, shifts: int, alpha: float) -> float:
    """The smallest share of a sequence of ``count`` values that is seen to come twice."""
    critical = -NormalDist().inv_cdf(alpha / (2 * shifts))
    return min(1.0, (critical + NormalDist().inv_cdf(POWER)) / math.sqrt(count))


def sum_p_value(total: float, mean: float, variance: float) -> float:
    """Two-sided, of a sum of many small independent parts."""
    if variance <= 0:
        return 1.0 if math.isclose(total, mean) else 0.0
    return float(math.erfc(abs(total - mean) / math.sqrt(2 * variance)))


def dispersion_p_value(statistic: float, mean: float, variance: float) -> float:
    """Two-sided, of a sum of squares, by the gamma law of its mean and variance.

    Source: Satterthwaite 1946, "An approximate distribution of estimates of variance components".
    """
    shape, scale = mean * mean / variance, variance / mean
    above = float(gammaincc(shape, statistic / scale))
    return min(1.0, 2 * min(above, 1 - above))


def truncated_binomial(count: int, rate: float, largest: int) -> tuple[FloatArray, FloatArray]:
    """Sizes 0 .. ``largest`` and their chances, where a larger sample is cut to ``largest``."""
    from scipy.stats import binom

    sizes = np.arange(min(count, largest) + 1, dtype=np.float64)
    chances = np.asarray(binom.pmf(sizes, count, rate), dtype=np.float64)
    chances[-1] = binom.sf(len(sizes) - 2, count, rate)
    return sizes, chances


def moments(sizes: FloatArray, chances: FloatArray) -> tuple[float, float, float]:
    """Mean, variance and fourth central moment."""
    mean = float(sizes @ chances)
    centred = sizes - mean
    return mean, float(centred**2 @ chances), float(centred**4 @ chances)


def _scale(values: FloatArray) -> float:
    scale = math.sqrt(float(np.mean(np.square(values)))) if len(values) else 0.0
    if not 0 < scale < math.inf:
        raise ScoreError(f"expected values that vary and are finite, got a deviation of {scale}")
    return scale


def _largest(products: FloatArray, counts: npt.NDArray[np.int64]) -> tuple[float, float]:
    z = np.abs(products) / np.sqrt(counts)
    where = int(np.argmax(z))
    single = math.erfc(float(z[where]) / math.sqrt(2))
    return float(products[where] / counts[where]), min(1.0, single * len(products))
