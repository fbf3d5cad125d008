"""Canonical JSON and digests: equal for the same, different for anything else."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.digests import (
    ArraysDigest,
    DigestMemory,
    arrays_digest,
    canonical_json,
    json_digest,
    sha256_hex,
)
from core.errors import MessageError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)  # fmt: skip


def test_sha256_of_the_published_vector() -> None:
    # FIPS 180-2, appendix B.1.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_hex(b"abc") == expected


def test_canonical_json_is_sorted_dense_and_ascii() -> None:
    assert canonical_json({"b": [1, 0.5, None], "a": "\u00e9"}) == (
        b'{"a":"\\u00e9","b":[1,0.5,null]}'
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_canonical_json_has_no_word_for_what_json_lacks(value: float) -> None:
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        canonical_json({"x": value})


@given(JSON)
def test_the_order_of_keys_does_not_matter(value: object) -> None:
    def reversed_keys(item: object) -> object:
        if isinstance(item, dict):
            return {key: reversed_keys(item[key]) for key in reversed(item)}
        if isinstance(item, list):
            return [reversed_keys(part) for part in item]
        return item

    assert json_digest(reversed_keys(value)) == json_digest(value)


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (1, True), (0, False), ("1", 1), ([1], 1), (0.0, -0.0), ({}, [])]
)
def test_values_of_different_types_have_different_digests(one: object, other: object) -> None:
    assert json_digest(one) != json_digest(other)


def vector(*values: float, dtype: str = "float32") -> np.ndarray:
    return np.array(values, dtype=dtype)


A = {"a": vector(1, 2)}


@pytest.mark.parametrize(
    "other",
    [
        {"a": vector(1, 3)},
        {"b": vector(1, 2)},
        {"a": vector(1, 2, dtype="float64")},
        {"a": vector(1, 2).view(np.int32)},
        {"a": vector(1, 2).reshape(1, 2)},
        {"a": vector(1), "b": vector(2)},
        {"a": vector(1, 2), "b": vector()},
        {},
    ],
)
def test_other_arrays_have_another_digest(other: dict[str, np.ndarray]) -> None:
    assert arrays_digest(A) != arrays_digest(other)


def test_a_scalar_is_not_a_vector_of_one() -> None:
    assert arrays_digest({"a": np.asarray(1.0)}) != arrays_digest({"a": np.asarray([1.0])})


def test_bits_count_not_values() -> None:
    assert arrays_digest({"a": vector(0.0)}) != arrays_digest({"a": vector(-0.0)})
    assert arrays_digest({"a": vector(math.nan)}) == arrays_digest({"a": vector(math.nan)})


def test_the_boundary_between_two_arrays_counts() -> None:
    one = {"a": np.zeros(3, np.uint8), "b": np.zeros(5, np.uint8)}
    other = {"a": np.zeros(5, np.uint8), "b": np.zeros(3, np.uint8)}
    assert arrays_digest(one) != arrays_digest(other)


def test_order_of_names_memory_and_bytes_does_not_matter() -> None:
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = arrays_digest({"x": base, "y": vector(1)})
    assert arrays_digest({"y": vector(1), "x": base}) == expected
    assert arrays_digest({"x": np.asfortranarray(base), "y": vector(1)}) == expected
    assert arrays_digest({"x": base.astype(">f4"), "y": vector(1)}) == expected
    assert arrays_digest({"x": np.repeat(base, 2, axis=1)[:, ::2], "y": vector(1)}) == expected


def test_the_digest_does_not_change_from_version_to_version() -> None:
    # Written out by hand: length of the header, header, little-endian bytes.
    header = b'["a","<f4",[2]]'
    written = len(header).to_bytes(8, "little") + header + b"\x00\x00\x80\x3f\x00\x00\x00\x40"
    assert arrays_digest(A) == sha256_hex(written)


@pytest.mark.parametrize("dtype", ["O", "U3", "S3", "V2", "M8[s]", "i4,f4"])
def test_arrays_of_other_things_than_numbers_are_refused(dtype: str) -> None:
    with pytest.raises(MessageError, match="expected an array of numbers or booleans for 'a', got"):
        arrays_digest({"a": np.zeros(2, dtype=dtype)})


def _over_bytes(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Read-only views of bytes, as they come out of a message."""
    return {
        name: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)
        for name, array in arrays.items()
    }


WEIGHTS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(4, dtype=np.float32)}


def test_the_memory_gives_the_digest_and_computes_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
        calls.append(1)
        return arrays_digest(arrays)

    monkeypatch.setattr("core.digests.arrays_digest", counted)
    memory, arrays = DigestMemory(), _over_bytes(WEIGHTS)
    # Another site's views of the same bytes.
    again = {name: array.reshape(-1).reshape(array.shape) for name, array in arrays.items()}

    assert memory.digest(arrays) == memory.digest(again) == arrays_digest(WEIGHTS)
    assert len(calls) == 1


def test_the_memory_does_not_trust_arrays_that_can_change() -> None:
    memory = DigestMemory()
    arrays = {name: array.copy() for name, array in WEIGHTS.items()}
    before = memory.digest(arrays)

    arrays["a"][0] = 7

    assert memory.digest(arrays) == arrays_digest(arrays) != before


def test_the_memory_does_not_trust_a_read_only_view_of_what_can_change() -> None:
    memory = DigestMemory()
    owner = np.ones(4, np.float32)
    view = owner[:]
    view.flags.writeable = False
    before = memory.digest({"a": view})

    owner[0] = 7

    assert memory.digest({"a": view}) == arrays_digest({"a": owner}) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: {**arrays, "a": arrays["a"][::-1]},
        lambda arrays: {**arrays, "a": arrays["a"].reshape(2, 2)},
        lambda arrays: {**arrays, "a": arrays["a"][:3]},
        lambda arrays: {**arrays, "a": arrays["a"].view(np.int32)},
        lambda arrays: {"a": arrays["b"], "b": arrays["a"]},
        lambda arrays: {"a": arrays["a"]},
        lambda arrays: _over_bytes({**arrays, "a": arrays["a"] * np.float32(2)}),
    ],
    ids=["strides", "shape", "length", "dtype", "names", "fewer", "other-bytes"],
)
def test_the_memory_sees_every_difference(change: Callable[[Any], Any]) -> None:
    memory, arrays = DigestMemory(), _over_bytes(WEIGHTS)
    before = memory.digest(arrays)

    assert memory.digest(change(arrays)) == arrays_digest(change(arrays)) != before


def test_the_memory_keeps_the_bytes_so_that_their_address_is_not_used_again() -> None:
    memory = DigestMemory()
    for value in range(50):
        arrays = _over_bytes({"a": np.full(50_000, value, np.float32)})
        assert memory.digest(arrays) == arrays_digest(arrays)
        del arrays


@given(st.lists(st.integers(0, 24)), st.sampled_from(["<f4", ">f4", "<u2", "i1"]))
def test_the_pieces_of_a_digest_do_not_matter(cuts: list[int], dtype: str) -> None:
    arrays = {"a": np.arange(3, dtype="<f4"), "b": np.arange(6, dtype=dtype).reshape(2, 3)}
    digest = ArraysDigest()
    for name, array in arrays.items():
        digest.begin(name, array.dtype, array.shape)
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
        for start, end in itertools.pairwise(edges):
            digest.update(memoryview(data)[start:end])
    assert digest.hexdigest() == digest.digest().hex() == arrays_digest(arrays)


def test_a_digest_of_pieces_refuses_what_is_no_number() -> None:
    with pytest.raises(MessageError, match="expected an array of numbers or booleans for 'a', got"):
        ArraysDigest().begin("a", np.dtype("O"), (1,))
