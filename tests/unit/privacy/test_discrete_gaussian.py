"""The sampler draws the discrete Gaussian, as a naive one does bit for bit, and no other.

Keys are fixed, so that a test says the same every time.
"""

import bisect
import itertools
import math
from collections.abc import Iterator
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from core.errors import PrivacyError
from privacy.discrete_gaussian import DiscreteGaussian, _levels
from privacy.discrete_gaussian_tables import gaussian_table
from privacy.random_source import RandomStream

KEY = bytes(range(32))
BLOCK = 262_144
Integers = npt.NDArray[np.int64]
DEVIATIONS = [8.0, 100.5, 640.0, 641.0, 2.0**15, 2.0**23, 2.0**30]


def drawn(deviation: float, count: int = 200_000) -> Integers:
    return DiscreteGaussian(Fraction(deviation) ** 2).sample(RandomStream(KEY), count).numpy()


# Bit for bit what the naive one draws


def keystream(key: bytes) -> Iterator[int]:
    """The bytes of AES-256-CTR, block by block."""
    aes = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305 (block by block)
    number = 0
    while True:
        yield from aes.update(number.to_bytes(16, "big"))
        number += 1


def take(stream: Iterator[int], size: int) -> int:
    return int.from_bytes(bytes(next(stream) for _ in range(size)), "little")


def naive_weights(variance: Fraction) -> dict[int, int]:
    """exp(-k*k / (2 variance)), each on its own, for the outcomes that a table has."""
    reach = math.isqrt(math.ceil(178 * variance)) + 1
    with localcontext() as context:
        context.prec = 130
        two = Decimal(2 * variance.numerator) / Decimal(variance.denominator)
        half = [int((-Decimal(k * k) / two).exp() * (1 << 320)) for k in range(reach + 1)]
    return {k: half[abs(k)] for k in range(-reach, reach + 1)}


def naive_level(variance: Fraction, stream: Iterator[int], count: int) -> list[int]:
    """A level's draws: every stage goes over those that the stage before left open."""
    mass, found, unsure = naive_weights(variance), [0] * count, list(range(count))
    for _ in range(3):
        total = sum(mass.values())
        slots = [k for k, weight in mass.items() for _ in range((weight << 16) // total)]
        mass = {k: (weight << 16) % total for k, weight in mass.items()}
        cells = [take(stream, 2) for _ in unsure]
        for place, cell in zip(unsure, cells, strict=True):
            if cell < len(slots):
                found[place] = slots[cell]
        unsure = [p for p, cell in zip(unsure, cells, strict=True) if cell >= len(slots)]
    outcomes, total = list(mass), sum(mass.values())
    bounds = [(so_far << 128) // total for so_far in itertools.accumulate(mass.values())]
    for place in unsure:
        high, low = take(stream, 8), take(stream, 8)
        found[place] = outcomes[bisect.bisect_right(bounds, (high << 64) + low)]
    return found


def naive_sample(levels: list[Fraction], base: int, key: bytes, count: int) -> list[int]:
    """Blocks of 262,144, each under the next key of the stream."""
    parent, values = keystream(key), list[int]()
    while len(values) < count:
        stream = keystream(bytes(next(parent) for _ in range(32)))
        size = min(BLOCK, count - len(values))
        total = [0] * size
        for variance in levels:
            level = naive_level(variance, stream, size)
            total = [base * above + one for above, one in zip(total, level, strict=True)]
        values += total
    return values


@pytest.mark.parametrize(
    ("deviation", "base", "lower", "count"),
    [(8, 1, 0, 500), (100, 1, 0, BLOCK + 1000), (2000, 4, 1, 2000), (2**23, 128, 2, 4000)],
)
def test_values_are_those_of_a_naive_sampler(
    deviation: int, base: int, lower: int, count: int
) -> None:
    narrow = Fraction(33 * base, 16) ** 2
    top = Fraction(deviation) ** 2
    for _ in range(lower):
        top = (top - narrow) / base**2
    naive = naive_sample([top, *[narrow] * lower], base, KEY, count)
    assert drawn(deviation, count).tolist() == naive
    assert drawn(deviation * 1.01, count).tolist() != naive


# The sum of levels


def exact(variance: Fraction, reach: int) -> dict[int, Decimal]:
    with localcontext() as context:
        context.prec = 60
        two = Decimal(2 * variance.numerator) / Decimal(variance.denominator)
        weights = {k: (-Decimal(k * k) / two).exp() for k in range(-reach, reach + 1)}
        total = sum(weights.values())
        return {k: weight / total for k, weight in weights.items()}


def distance_of_sum(narrow: Fraction, upper: Fraction, base: int) -> float:
    """Total variation of D(narrow) + base D(upper) from the discrete Gaussian of the sum."""
    with localcontext() as context:
        context.prec = 60
        fine, coarse = (exact(v, 16 * math.isqrt(math.ceil(v))) for v in (narrow, upper))
        found: dict[int, Decimal] = {}
        for k, p in coarse.items():
            for j, q in fine.items():
                found[base * k + j] = found.get(base * k + j, Decimal(0)) + p * q
        expected = exact(narrow + base**2 * upper, max(found))
        return float(sum(abs(found.get(k, Decimal(0)) - p) for k, p in expected.items()) / 2)


def test_no_trace_of_the_coarser_grid_is_left() -> None:
    """Worked out for the smallest levels; 33/16 is what the sampler takes."""
    top = Fraction(20**2)
    assert distance_of_sum(Fraction(33, 8) ** 2, top, 2) < 2.0**-110
    assert distance_of_sum(Fraction(33, 4) ** 2, top, 4) < 2.0**-110
    assert distance_of_sum(Fraction(2) ** 2, top, 2) > 2.0**-30  # too narrow for its grid


def test_levels_add_up_and_stay_in_range() -> None:
    for exponent in np.linspace(0, 48, 97):
        variance = Fraction(2.0**exponent) ** 2
        noise = DiscreteGaussian(variance)
        base, lower = _levels(variance)
        assert base <= 256
        assert len(noise.tables) == lower + 1
        assert noise.distance < 2.0**-110
        assert noise.reach > 13 * 2.0**exponent
        assert noise.reach < 13.4 * 2.0**exponent + 32 * base**lower
        assert noise.dtype == (torch.int32 if noise.reach < 2**31 else torch.int64)


def test_coset_of_the_coarser_grid_is_uniform() -> None:
    base, _ = _levels(Fraction(2.0**23) ** 2)
    counts = np.bincount(drawn(2.0**23) % base, minlength=base)
    assert stats.chisquare(counts).pvalue > 0.01
    fine = drawn(base / 3.0)  # narrower than the sampler's
    counts = np.bincount((fine + base * drawn(512.0, len(fine))) % base, minlength=base)
    assert stats.chisquare(counts).pvalue < 1e-6


# Statistics


def deviation_interval(values: Integers) -> tuple[float, float]:
    """99.9 % for the deviation."""
    total = float(np.square(values.astype(np.float64)).sum())
    low, high = stats.chi2.ppf([0.0005, 0.9995], len(values))
    return math.sqrt(total / high), math.sqrt(total / low)


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_deviation_is_the_one_asked_for_and_no_other(deviation: float) -> None:
    low, high = deviation_interval(drawn(deviation))
    assert low < deviation < high
    for wrong in (2 / 3, 1.5, 0.98, 1.02):
        assert not low < deviation * wrong < high


@pytest.mark.parametrize("deviation", [2.0**15, 2.0**23, 2.0**30])
def test_wide_noise_is_normal_with_its_deviation_and_with_no_other(deviation: float) -> None:
    values = drawn(deviation) / deviation
    assert stats.kstest(values, "norm").pvalue > 0.01
    for wrong in (2 / 3, 1.5, 0.98, 1.02):
        assert stats.kstest(values / wrong, "norm").pvalue < 1e-4
    for rival in (stats.laplace.ppf(stats.norm.cdf(values)) / math.sqrt(2), values.clip(-2, 2)):
        assert stats.kstest(rival, "norm").pvalue < 1e-4


def chi_square(values: Integers, deviation: float) -> float:
    """Of the outcomes that are expected at least 20 times, against the exact distribution."""
    exact_probability = exact(Fraction(deviation) ** 2, math.ceil(14 * deviation))
    expected = {k: float(p) * len(values) for k, p in exact_probability.items()}
    common = [k for k, count in expected.items() if count >= 20]
    counts = [int((values == k).sum()) for k in common]
    rest = len(values) - sum(expected[k] for k in common)
    observed = np.array([*counts, len(values) - sum(counts)])
    return float(stats.chisquare(observed, [*[expected[k] for k in common], rest]).pvalue)


@pytest.mark.parametrize("deviation", [1.0, 8.0, 33.0])
def test_narrow_noise_has_each_outcome_as_often_as_it_should(deviation: float) -> None:
    values = drawn(deviation)
    assert chi_square(values, deviation) > 0.01
    for wrong in (2 / 3, 1.5, 0.98, 1.02):
        assert chi_square(values, deviation * wrong) < 1e-4


def test_moments_and_tails() -> None:
    values = drawn(2.0**23, 4_000_000) / 2.0**23
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        spread = math.sqrt(math.prod(range(1, 2 * power, 2)) - moment**2)  # E x^2p = (2p - 1)!!
        assert abs(np.mean(values**power) - moment) < 4 * spread / math.sqrt(len(values))
    for beyond in (3.0, 4.0, 4.5):
        hits, expected = int((np.abs(values) > beyond).sum()), float(2 * stats.norm.sf(beyond))
        assert stats.binomtest(hits, len(values), expected).pvalue > 0.01
        assert stats.binomtest(hits, len(values), expected * 3).pvalue < 1e-4
    assert np.abs(np.mean(values > 0) - 0.5) < 0.002


def correlation(left: Integers, right: Integers) -> float:
    return abs(float(np.corrcoef(left, right)[0, 1])) * math.sqrt(len(left))


def test_values_do_not_follow_each_other() -> None:
    values = drawn(2.0**23, 3 * BLOCK).astype(np.float64)
    for lag in (1, 2, BLOCK):  # neighbours, and the same place of the next block
        assert correlation(values[lag:], values[:-lag]) < 4
        assert correlation(np.square(values[lag:]), np.square(values[:-lag])) < 4
    assert correlation(np.repeat(values, 2)[1:], np.repeat(values, 2)[:-1]) > 50
    low, high = values.astype(np.int64) % 128, values.astype(np.int64) // 128
    assert correlation(low, high) < 4  # the levels


def test_noise_is_fresh_at_every_call() -> None:
    noise, stream = DiscreteGaussian(Fraction(2**40) ** 2), RandomStream(KEY)
    first, second = (noise.sample(stream, 50_000).numpy() for _ in range(2))
    assert len(np.intersect1d(first, second)) < 10
    assert np.array_equal(first, drawn(2.0**40, 50_000))  # what reuse would look like


@pytest.mark.slow
def test_a_hundred_million_values() -> None:
    """Moments to the sixth, tails to 6 deviations, and Kolmogorov and Smirnov's distance."""
    noise, stream = DiscreteGaussian(Fraction(2**23) ** 2), RandomStream(KEY)
    count, parts, scale = 100_000_000, 20, 2.0**23
    edges = stats.norm.ppf(np.arange(1, 4096) / 4096)
    below, powers, beyond = np.zeros(4096), np.zeros(7), np.zeros(7)
    for _ in range(parts):
        values = noise.sample(stream, count // parts).numpy() / scale
        below += np.bincount(np.searchsorted(edges, values), minlength=4096)
        powers += [float(np.mean(values**power)) / parts for power in range(7)]
        beyond += [int((np.abs(values) > far).sum()) for far in range(7)]
    gaps = np.abs(np.cumsum(below)[:-1] / count - np.arange(1, 4096) / 4096)
    assert stats.kstwobign.sf(gaps.max() * math.sqrt(count)) > 0.01
    for wrong in (0.998, 1.002, 2 / 3, 1.5):
        off = np.abs(np.cumsum(below)[:-1] / count - stats.norm.cdf(edges * wrong))
        assert stats.kstwobign.sf(off.max() * math.sqrt(count)) < 1e-6
    assert stats.chisquare(below).pvalue > 0.01
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (5, 0), (6, 15)):
        spread = math.sqrt(math.prod(range(1, 2 * power, 2)) - moment**2)
        assert abs(powers[power] - moment) < 4 * spread / math.sqrt(count)
    for far in range(1, 7):
        expected = float(2 * stats.norm.sf(far))
        assert stats.binomtest(int(beyond[far]), count, expected).pvalue > 0.001


# What it does not depend on, and what it refuses


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 3])
def test_values_do_not_depend_on_the_number_of_threads(count: int) -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(drawn(2.0**23, count))
    finally:
        torch.set_num_threads(before)
    assert results[0].shape == (count,)
    assert results[0].dtype == np.int64
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_tables_are_shared_and_setting_up_again_changes_nothing() -> None:
    first, second = (DiscreteGaussian(Fraction(2.0**23) ** 2) for _ in range(2))
    assert first.tables[1] is first.tables[2] is second.tables[1]
    gaussian_table.cache_clear()
    assert np.array_equal(drawn(2.0**23, 1000), drawn(2.0**23, 1000))


def test_an_error_of_the_consumer_comes_out_of_any_thread() -> None:
    def refuse(start: int, values: torch.Tensor) -> None:
        if start:
            raise PrivacyError("no more")

    noise = DiscreteGaussian(Fraction(64))
    with pytest.raises(PrivacyError, match="no more"):
        noise.each_block(RandomStream(KEY), 3 * BLOCK, refuse)


@pytest.mark.parametrize("variance", [Fraction(0), Fraction(-1), Fraction(1, 2), Fraction(2**97)])
def test_a_deviation_out_of_range_is_refused(variance: Fraction) -> None:
    with pytest.raises(PrivacyError, match=r"a deviation from 1 to 2\*\*48 grid steps, got one"):
        DiscreteGaussian(variance)
