import os
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import (
    CohortTooSmallError,
    CommitmentError,
    SecureAggregationError,
    ShareUnopenedError,
    ThresholdError,
)
from privacy.secure_aggregation.shamir import PRIME, combine, read_share, share_bytes, split
from tests.support import naive_secagg

SECRET = bytes(range(32))


def at(points: dict[int, int], x: int) -> int:
    """The value at ``x`` of the polynomial of least degree through ``points``."""
    total = 0
    for place, share in points.items():
        above, below = share, 1
        for other in points:
            if other != place:
                above, below = above * (x - other), below * (place - other)
        total += above * pow(below, -1, PRIME)
    return total % PRIME


@pytest.mark.parametrize(("cohort", "threshold"), [(3, 3), (5, 4), (6, 5), (7, 2), (4, 1)])
def test_every_subset_of_the_threshold_gives_the_secret(cohort: int, threshold: int) -> None:
    xs = [2 * index + 1 for index in range(cohort)]
    shares = dict(zip(xs, split(SECRET, threshold, xs, os.urandom), strict=True))
    for size in range(threshold, cohort + 1):
        for subset in combinations(xs, size):
            assert combine({x: shares[x] for x in subset}, threshold) == SECRET


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(31) + b"\1"])
def test_the_extreme_secrets_come_back(secret: bytes) -> None:
    shares = split(secret, 2, [1, 2, 3], os.urandom)
    assert combine({2: shares[1], 3: shares[2]}, 2) == secret


def test_one_share_fewer_fits_every_secret() -> None:
    xs = [1, 2, 3, 4, 5]
    shares = dict(zip(xs, split(SECRET, 4, xs, os.urandom), strict=True))
    known = {x: shares[x] for x in (1, 3, 4)}
    for candidate in (0, 1, 2**256 - 1, int.from_bytes(SECRET, "big"), *range(7, 60)):
        # Degree 3 through the three shares and the candidate at 0: it could have been dealt.
        others = known | {0: candidate}
        possible = {x: at(others, x) for x in xs}
        assert all(possible[x] == share for x, share in known.items())
        assert combine(possible, 4) == candidate.to_bytes(32, "big")


def test_one_share_fewer_does_not_give_the_secret() -> None:
    xs = [1, 2, 3, 4, 5]
    shares = dict(zip(xs, split(SECRET, 4, xs, os.urandom), strict=True))
    for subset in combinations(xs, 3):
        known = {x: shares[x] for x in subset}
        with pytest.raises(CohortTooSmallError, match=r"expected 4 shares, got 3"):
            combine(known, 4)
        # As though the threshold were 3: a number of 521 bits, 1 in 2^265 of which are a secret.
        with pytest.raises(CommitmentError, match=r"expected shares of one secret"):
            combine(known, 3)


def test_all_coefficients_are_random_and_uniform_over_the_field() -> None:
    asked: list[int] = []

    def counted(size: int) -> bytes:
        asked.append(size)
        return os.urandom(size)

    shares = split(SECRET, 4, [1, 2, 3, 4], counted)
    assert asked == [66, 66, 66]
    assert split(SECRET, 4, [1, 2, 3, 4], os.urandom) != shares
    bits = np.array(
        [
            [share >> bit & 1 for bit in range(521)]
            for share in (split(SECRET, 2, [1, 2], os.urandom)[0] for _ in range(2000))
        ]
    )
    # Six standard deviations for the worst of 521; a stuck bit would be 22 of them off.
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 6 * 0.5 / np.sqrt(2000)


def test_the_one_number_of_521_bits_outside_the_field_is_drawn_again() -> None:
    drawn = iter([b"\xff" * 66, bytes(65) + b"\5"])
    shares = split(bytes(32), 2, [1, 2, 3], lambda size: next(drawn))
    assert shares == [5, 10, 15]


def test_shares_equal_those_of_the_naive_implementation() -> None:
    drawn: list[bytes] = []

    def kept(size: int) -> bytes:
        drawn.append(os.urandom(size))
        return drawn[-1]

    xs = [3, 1, 200, 7]
    shares = split(SECRET, 3, xs, kept)
    # The highest power is drawn first.
    coefficients = [int.from_bytes(data, "big") % 2**521 for data in reversed(drawn)]
    assert shares == naive_secagg.deal(SECRET, coefficients, xs)
    assert naive_secagg.recover(dict(list(zip(xs, shares, strict=True))[1:])) == SECRET


@given(st.binary(min_size=32, max_size=32), st.integers(1, 12), st.data())
@settings(max_examples=100, deadline=None)
def test_whatever_is_dealt_comes_back(secret: bytes, threshold: int, data: st.DataObject) -> None:
    xs = data.draw(st.lists(st.integers(1, 256), unique=True, min_size=threshold, max_size=16))
    shares = dict(zip(xs, split(secret, threshold, xs, os.urandom), strict=True))
    chosen = data.draw(st.permutations(xs))[:threshold]
    assert combine({x: shares[x] for x in chosen}, threshold) == secret


@pytest.mark.parametrize("xs", [[1, 2, 2], [0, 1, 2], [-1, 1, 2], [1, 2, PRIME], [1, 1, PRIME + 1]])
def test_a_place_of_zero_or_one_that_comes_twice_is_refused(xs: list[int]) -> None:
    with pytest.raises(SecureAggregationError, match=r"expected distinct places from 1"):
        split(SECRET, 2, xs, os.urandom)


def test_a_share_at_zero_is_refused_when_shares_are_combined() -> None:
    with pytest.raises(SecureAggregationError, match=r"expected distinct places from 1"):
        combine({0: 5, 1: 7}, 2)


@pytest.mark.parametrize("threshold", [0, -1, 4])
def test_a_threshold_that_no_one_can_reach_is_refused(threshold: int) -> None:
    with pytest.raises(ThresholdError, match=r"expected a threshold of 1 to 3, got"):
        split(SECRET, threshold, [1, 2, 3], os.urandom)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_secret_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(SecureAggregationError, match=r"expected a secret of 32 bytes"):
        split(bytes(size), 2, [1, 2], os.urandom)


@pytest.mark.parametrize("share", [-1, PRIME, PRIME + 1, 2**528 - 1])
def test_a_share_out_of_the_field_is_refused(share: int) -> None:
    with pytest.raises(ShareUnopenedError, match=r"expected a share in the field"):
        combine({1: 3, 2: share}, 2)
    with pytest.raises(ShareUnopenedError, match=r"expected a share in the field"):
        share_bytes(share)
    if share > 0:
        with pytest.raises(ShareUnopenedError, match=r"expected a share in the field"):
            read_share(share.to_bytes(66, "big"))


@pytest.mark.parametrize("size", [0, 65, 67])
def test_a_share_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ShareUnopenedError, match=r"expected a share of 66 bytes, got"):
        read_share(bytes(size))


@pytest.mark.parametrize("share", [0, 1, 2**520, PRIME - 1])
def test_a_share_comes_back_as_it_was_sent(share: int) -> None:
    assert read_share(share_bytes(share)) == share


@pytest.mark.parametrize("threshold", [0, -1])
def test_no_share_at_all_gives_nothing(threshold: int) -> None:
    with pytest.raises(CohortTooSmallError, match=r"expected (0|-1) shares"):
        combine({1: 3}, threshold)


def test_a_secret_is_no_number_of_257_bits() -> None:
    largest = 2**256 - 1
    assert combine({1: largest + 5, 2: largest + 10}, 2) == b"\xff" * 32
    with pytest.raises(CommitmentError, match=r"expected shares of one secret"):
        combine({1: largest + 6, 2: largest + 11}, 2)


def test_a_share_that_is_wrong_by_chance_is_seen() -> None:
    shares = split(SECRET, 2, [1, 2], os.urandom)
    with pytest.raises(CommitmentError, match=r"expected shares of one secret"):
        combine({1: shares[0], 2: (shares[1] + 2**400) % PRIME}, 2)


def test_a_share_that_is_wrong_on_purpose_is_left_to_the_commitment() -> None:
    shares = split(SECRET, 2, [1, 2], os.urandom)
    moved = combine({1: shares[0], 2: (shares[1] + 1) % PRIME}, 2)
    assert int.from_bytes(moved, "big") == int.from_bytes(SECRET, "big") - 1


def test_only_the_first_shares_by_place_are_taken() -> None:
    shares = split(SECRET, 2, [1, 2, 3], os.urandom)
    assert combine({3: 0, 2: shares[1], 1: shares[0]}, 2) == SECRET
