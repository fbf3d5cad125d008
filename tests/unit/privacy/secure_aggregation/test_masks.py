import os
import tracemalloc
from typing import Any

import numpy as np
import pytest

from core.errors import SecureAggregationError
from privacy.secure_aggregation import masks
from privacy.secure_aggregation.masks import add_mask, add_masks, pair_sign
from tests.support import naive_secagg as naive

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
BLOCK = 1 << 15


def vector(size: int, seed: int = 0) -> masks.Ring:
    return np.random.default_rng(seed).integers(0, 2**32, size, dtype=np.uint32)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 7, 8, 9, 17, 200])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_mask_equals_the_naive_one_bit_for_bit(size: int, sign: Any) -> None:
    for seed in range(5):
        key, values = os.urandom(32), vector(size, seed)
        expected = [
            (value + sign * word) % 2**32
            for value, word in zip(values.tolist(), naive.words(key, size), strict=True)
        ]
        add_mask(values, key, sign)
        assert values.tolist() == expected


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_blocks_do_not_matter(size: int) -> None:
    values = np.zeros(size, np.uint32)
    add_mask(values, KEY, 1)
    # The keystream from any place on, around each edge: its counter tells where it is.
    for edge in (0, BLOCK, 2 * BLOCK, 3 * BLOCK, size):
        start = min(max(0, edge - 16), size) // 4 * 4
        stream = naive.keystream(KEY, start // 4, 4 * min(36, size - start))
        assert values[start : start + 36].astype("<u4").tobytes() == stream


def test_a_shorter_vector_gets_the_beginning_of_the_same_mask() -> None:
    long, short = np.zeros(2 * BLOCK, np.uint32), np.zeros(BLOCK + 3, np.uint32)
    add_mask(long, KEY, 1)
    add_mask(short, KEY, 1)
    assert np.array_equal(long[: short.size], short)


def test_a_mask_that_was_added_comes_off() -> None:
    values = vector(BLOCK + 7)
    before = values.copy()
    add_mask(values, KEY, 1)
    assert np.count_nonzero(values == before) < 5
    add_mask(values, KEY, -1)
    assert np.array_equal(values, before)


def test_many_masks_at_once_equal_one_after_the_other() -> None:
    keys: list[tuple[bytes, masks.Sign]] = [
        (os.urandom(32), 1 if index % 3 else -1) for index in range(7)
    ]
    at_once, one_by_one = vector(2 * BLOCK + 9), vector(2 * BLOCK + 9)
    add_masks(at_once, keys)
    for key, sign in reversed(keys):
        add_mask(one_by_one, key, sign)
    assert np.array_equal(at_once, one_by_one)


def test_no_mask_changes_nothing() -> None:
    values = vector(10)
    add_masks(values, [])
    assert np.array_equal(values, vector(10))


def test_the_masks_of_all_pairs_cancel() -> None:
    sites = ["west", "north", "east", "south", "n-2", "N"]
    keys = {frozenset((a, b)): os.urandom(32) for a in sites for b in sites if a < b}
    total = np.zeros(BLOCK + 1, np.uint32)
    for site in sites:
        one = np.zeros_like(total)
        add_masks(
            one,
            [(keys[frozenset((site, p))], pair_sign(site, p)) for p in sites if p != site],
        )
        assert np.count_nonzero(one) > one.size - 5
        total += one
    assert not total.any()


def test_the_first_by_name_adds_and_the_other_subtracts() -> None:
    assert (pair_sign("east", "west"), pair_sign("west", "east")) == (1, -1)
    with pytest.raises(SecureAggregationError, match=r"expected two sites, got 'east' twice"):
        pair_sign("east", "east")


def unfair(values: masks.Ring) -> bool:
    """Whether a bit of the words is set too often or too rarely: seven standard deviations."""
    bits = np.unpackbits(values.view(np.uint8)).reshape(-1, 32).mean(axis=0)
    return bool(np.abs(bits - 0.5).max() > 7 * 0.5 / np.sqrt(values.size))


def test_two_keys_give_two_masks_and_each_looks_random() -> None:
    one, other = np.zeros(1 << 18, np.uint32), np.zeros(1 << 18, np.uint32)
    add_mask(one, KEY, 1)
    add_mask(other, OTHER, 1)
    assert np.count_nonzero(one == other) < 5
    assert not unfair(one)
    assert not unfair(one - other)
    assert unfair(one & ~np.uint32(1 << 9) | (other & one & np.uint32(1 << 9)))


def test_a_mask_takes_no_memory_of_the_vectors_size() -> None:
    values = np.zeros(1 << 22, np.uint32)
    add_mask(values[:8], KEY, 1)
    tracemalloc.start()
    try:
        add_masks(values, [(os.urandom(32), 1) for _ in range(8)])
        peak = tracemalloc.get_traced_memory()[1]
        copy = values.copy()
        seen = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A copy is seen by this measure, and the masks stay below a twentieth of one.
    assert seen >= copy.nbytes
    assert peak < copy.nbytes / 20


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(8, np.int32),
        np.zeros(8, np.uint64),
        np.zeros(8, np.float32),
        np.zeros((2, 4), np.uint32),
        np.zeros(16, np.uint32)[::2],
        np.frombuffer(bytes(32), np.uint32),
    ],
)
def test_anything_but_a_vector_of_uint32_in_one_piece_is_refused(values: Any) -> None:
    with pytest.raises(SecureAggregationError, match=r"expected a vector of uint32 to mask"):
        add_mask(values, KEY, 1)


def test_a_vector_longer_than_a_keystream_is_refused_before_anything_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # GCM gives 2^36 - 32 bytes under one key, and the two counters before them 32.
    assert 4 * masks.MAX_VALUES == 2**36
    monkeypatch.setattr(masks, "MAX_VALUES", 10)
    add_mask(vector(10), KEY, 1)
    values = vector(11)
    with pytest.raises(SecureAggregationError, match=r"expected 10 values at most, got 11"):
        add_mask(values, KEY, 1)
    assert np.array_equal(values, vector(11))


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(31), bytes(33)])
def test_a_key_of_another_length_is_refused_before_anything_changes(key: bytes) -> None:
    values = vector(10)
    with pytest.raises(SecureAggregationError, match=r"expected keys of 32 bytes"):
        add_masks(values, [(KEY, 1), (key, 1)])
    assert np.array_equal(values, vector(10))


@pytest.mark.parametrize("sign", [0, 2, -2])
def test_another_sign_is_refused_before_anything_changes(sign: Any) -> None:
    values = vector(10)
    with pytest.raises(SecureAggregationError, match=r"and signs 1 or -1"):
        add_masks(values, [(KEY, 1), (KEY, sign)])
    assert np.array_equal(values, vector(10))


def test_more_values_than_a_keystream_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Counters of 32 bits, 16 bytes each.
    assert 4 * masks.MAX_VALUES == 16 * 2**32
    monkeypatch.setattr(masks, "MAX_VALUES", 10)
    add_mask(vector(10), KEY, 1)
    with pytest.raises(SecureAggregationError, match=r"expected 10 values at most, got 11"):
        add_mask(vector(11), KEY, 1)
