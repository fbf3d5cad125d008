"""Discrete Laplace noise on counts: the distribution that is debited, and no other.

Keys are fixed, so that a test says the same every time.
"""

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from core.errors import PrivacyError
from privacy.events import LaplaceCountsEvent
from privacy.noised_counts import LARGEST, DiscreteLaplace, counts_event, noised_counts
from privacy.random_source import RandomStream

Integers = npt.NDArray[np.int64]
DRAWS = 50_000
# Of a half, of a float that is no short fraction, of a whole number, and a wide one.
SCALES = [0.5, 4.0 / 3.0, 4.0, 57.3]


def drawn(scale: float, count: int = DRAWS, key: int = 1) -> Integers:
    stream = RandomStream(bytes([key]) * 32)
    return noised_counts(np.zeros(count, dtype=np.int64), LaplaceCountsEvent(scale), stream)


def p_value(values: Integers, scale: float) -> float:
    """Chi-square over single values, with the tails in two bins."""
    q = np.exp(-1.0 / scale)
    reach = max(int(scale * np.log(len(values) * (1 - q) / (1 + q) / 20)), 1)
    inner = np.arange(-reach, reach + 1)
    mass = (1 - q) / (1 + q) * q ** np.abs(inner)
    tail = (1 - mass.sum()) / 2
    expected = len(values) * np.array([tail, *mass, tail])
    observed = np.array(
        [
            np.sum(values < -reach),
            *(np.sum(values == value) for value in inner),
            np.sum(values > reach),
        ]
    )
    return float(stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue)


@pytest.mark.parametrize("scale", SCALES)
def test_noise_has_the_distribution_of_its_scale(scale: float) -> None:
    assert p_value(drawn(scale), scale) > 1e-3


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("wrong", [0.9, 1.1])
def test_noise_a_tenth_off_is_found(scale: float, wrong: float) -> None:
    assert p_value(drawn(scale * wrong), scale) < 1e-6


def test_the_test_finds_noise_without_the_second_look_at_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def draw(self: DiscreteLaplace) -> int:
        magnitude = self._geometric() // self._bottom
        return -magnitude if self._below(2) else magnitude

    monkeypatch.setattr(DiscreteLaplace, "draw", draw)
    assert p_value(drawn(4.0), 4.0) < 1e-6


@pytest.mark.parametrize(("top", "bottom"), [(1, 1), (1, 3), (7, 2), (2**60 + 1, 2**58)])
def test_any_fraction_is_a_scale(top: int, bottom: int) -> None:
    laplace = DiscreteLaplace(Fraction(top, bottom), RandomStream(bytes(32)))
    values = np.array([laplace.draw() for _ in range(20_000)])
    assert p_value(values, top / bottom) > 1e-3


def test_numbers_below_a_limit_are_uniform() -> None:
    laplace = DiscreteLaplace(Fraction(1), RandomStream(bytes(32)))
    for limit in (1, 2, 3, 5, 64, 100):
        values = [laplace._below(limit) for _ in range(5000)]
        assert set(values) <= set(range(limit))
        if limit > 1:
            assert stats.chisquare(np.bincount(values, minlength=limit)).pvalue > 1e-3
    wide = [laplace._below(3 * 2**100) for _ in range(2000)]
    assert max(wide) < 3 * 2**100
    assert max(wide) > 2**101  # what a single word could not reach


def test_noises_are_independent() -> None:
    values = drawn(4.0).astype(np.float64)
    bound = 5 / np.sqrt(len(values))
    for lag in (1, 2, 7):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < bound


@given(
    counts=st.lists(st.integers(0, 10**12), max_size=30),
    scale=st.floats(0.05, 50.0),
    key=st.binary(min_size=32, max_size=32),
)
def test_noise_is_added_to_each_count_and_does_not_follow_them(
    counts: list[int], scale: float, key: bytes
) -> None:
    array, event = np.array(counts, dtype=np.int64), LaplaceCountsEvent(scale)
    noised = noised_counts(array, event, RandomStream(key))
    noise = noised_counts(np.zeros_like(array), event, RandomStream(key))
    assert (noised - array == noise).all()


def test_the_shape_is_kept() -> None:
    event, stream = LaplaceCountsEvent(1.0), RandomStream(bytes(32))
    counts = np.zeros((2, 3, 4), dtype=np.int64)
    assert noised_counts(counts, event, stream).shape == (2, 3, 4)
    assert noised_counts(counts[:, :, :0], event, stream).shape == (2, 3, 0)


@pytest.mark.parametrize(("epsilon", "releases"), [(0.5, 2), (4.0, 2), (1.0, 1)])
def test_releases_share_an_epsilon(epsilon: float, releases: int) -> None:
    event = counts_event(epsilon, releases)
    assert releases / event.scale == pytest.approx(epsilon, rel=1e-15)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(PrivacyError, match="scale above 0"):
        DiscreteLaplace(Fraction(0), RandomStream(bytes(32)))
    with pytest.raises(PrivacyError, match="scale between"):
        counts_event(1e-10, 2)
    huge = np.array([LARGEST], dtype=np.int64)
    with pytest.raises(PrivacyError, match="far below"):
        noised_counts(huge, LaplaceCountsEvent(1.0), RandomStream(bytes(32)))
