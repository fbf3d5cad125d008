"""Shamir's secret sharing of 32-byte secrets over the prime field of 2^521 - 1.

Deliberately not here: what a share was sealed for, and whether the secret that comes back is the
one that was dealt. Associated data, commitments and public keys say that.

Source: Shamir 1979, "How to share a secret".
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from core.aggregation_messages import SHARE_BYTES
from core.errors import (
    CohortTooSmallError,
    CommitmentError,
    SecureAggregationError,
    ShareUnopenedError,
    ThresholdError,
)

PRIME: Final = 2**521 - 1
SECRET_BYTES: Final = 32


def split(
    secret: bytes, threshold: int, xs: Sequence[int], random: Callable[[int], bytes]
) -> list[int]:
    """Deals ``secret``: any ``threshold`` shares give it, and fewer say nothing about it.

    Guarantees:
        For every set of ``threshold - 1`` shares and every secret there is exactly one polynomial
        that fits both, and each is as likely, as far as ``random`` is uniform.

    Args:
        secret: 32 bytes.
        threshold: How many shares give it back.
        xs: Where the polynomial is evaluated: one place for each receiver, distinct, from 1.
        random: Gives so many random bytes, such as ``os.urandom``.

    Returns:
        The share of each of ``xs``, in their order.

    Raises:
        ThresholdError: There are fewer places than the threshold, or it is below 1.
        SecureAggregationError: A place is 0, where the secret lies, or comes twice; or the secret
            has another length.
    """
    if len(secret) != SECRET_BYTES:
        raise SecureAggregationError(f"expected a secret of {SECRET_BYTES} bytes, got another")
    _check_places(xs)
    if not 1 <= threshold <= len(xs):
        raise ThresholdError(f"expected a threshold of 1 to {len(xs)}, got {threshold}")
    polynomial = [_uniform(random) for _ in range(threshold - 1)]
    polynomial.append(int.from_bytes(secret, "big"))
    return [_evaluate(polynomial, x) for x in xs]


def combine(points: Mapping[int, int], threshold: int) -> bytes:
    """Gives the secret back from the first ``threshold`` of the shares, by place.

    Args:
        points: Shares by place.
        threshold: As it was dealt with.

    Raises:
        CohortTooSmallError: There are fewer shares.
        ShareUnopenedError: A share is not in the field.
        CommitmentError: The shares are of no 32-byte secret.
        SecureAggregationError: A place is 0, or not in the field.
    """
    if not 1 <= threshold <= len(points):
        raise CohortTooSmallError(f"expected {threshold} shares, got {len(points)}")
    places = sorted(points)[:threshold]
    _check_places(places)
    for place in places:
        _check_share(points[place])
    weights = _at_zero(tuple(places))
    value = sum(points[x] * weight for x, weight in zip(places, weights, strict=True)) % PRIME
    if value.bit_length() > 8 * SECRET_BYTES:
        raise CommitmentError("expected shares of one secret, got shares that do not go together")
    return value.to_bytes(SECRET_BYTES, "big")


def share_bytes(share: int) -> bytes:
    """A share as it travels: 66 bytes, big-endian."""
    _check_share(share)
    return share.to_bytes(SHARE_BYTES, "big")


def read_share(data: bytes) -> int:
    """A share that travelled.

    Raises:
        ShareUnopenedError: It has another length, or is not in the field.
    """
    if len(data) != SHARE_BYTES:
        raise ShareUnopenedError(f"expected a share of {SHARE_BYTES} bytes, got {len(data)}")
    share = int.from_bytes(data, "big")
    _check_share(share)
    return share


def _check_share(share: int) -> None:
    if not 0 <= share < PRIME:
        raise ShareUnopenedError("expected a share in the field of 2^521 - 1, got another number")


def _check_places(xs: Sequence[int]) -> None:
    if len(set(xs)) != len(xs) or not all(0 < x < PRIME for x in xs):
        raise SecureAggregationError("expected distinct places from 1, got 0 or one place twice")


def _uniform(random: Callable[[int], bytes]) -> int:
    while True:
        # 521 of 528 bits; of their values one alone is not in the field.
        value = int.from_bytes(random(SHARE_BYTES), "big") & PRIME
        if value < PRIME:
            return value


def _evaluate(polynomial: Sequence[int], x: int) -> int:
    """Horner's rule; the highest power comes first.

    Reduced once, at the end: with small places the number stays short, and a remainder takes
    longer than all else.
    """
    value = 0
    for coefficient in polynomial:
        value = value * x + coefficient
    return value % PRIME


@lru_cache(maxsize=8)  # one attempt puts all its secrets together from the same places
def _at_zero(places: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights for the value at 0. Places are public."""
    weights = []
    for x in places:
        others = [other for other in places if other != x]
        below = math.prod(other - x for other in others)
        weights.append(math.prod(others) * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
