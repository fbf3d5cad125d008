"""How a step's records are cut among processes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.parallel.shares import check_shares, split

SHARES = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=1, max_size=9).filter(any)


@given(st.integers(0, 100_000), SHARES)
def test_parts_cover_the_batch_in_proportion(count: int, shares: list[float]) -> None:
    parts = split(count, shares)
    assert sum(parts) == count
    for part, share in zip(parts, shares, strict=True):
        assert part >= 0
        assert abs(part - count * share / math.fsum(shares)) < 1 + 1e-6
        assert share > 0 or part == 0


@pytest.mark.parametrize(
    ("count", "shares", "parts"),
    [
        (0, [1, 1], [0, 0]),
        (1, [1, 1], [1, 0]),
        (1, [1, 3], [0, 1]),
        (7, [1, 1, 1], [3, 2, 2]),
        (10, [0.2, 0.5, 0.3], [2, 5, 3]),
        (9, [0, 1], [0, 9]),
        (5, [1], [5]),
    ],
)
def test_known_cuts(count: int, shares: list[float], parts: list[int]) -> None:
    assert split(count, shares) == parts


@pytest.mark.parametrize(
    "shares", [[], [1.0], [0.0, 0.0], [1.0, -1.0], [math.nan, 1], [math.inf, 1]]
)
def test_shares_that_cut_nothing_are_refused(shares: list[float]) -> None:
    with pytest.raises(ConfigError, match="expected 2 shares"):
        check_shares(shares, 2)
