import math
from io import BytesIO

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st

from coordinator.payload import from_record, share_record, to_record
from core.array_codec import manifest_of
from core.errors import MessageError

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(-0.0, np.float32),
}


def _saved(array: np.ndarray) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=array.dtype.hasobject)
    return buffer.getvalue()


def test_a_payload_is_byte_for_byte_what_flower_writes() -> None:
    record = to_record(ARRAYS)

    for name, array in ARRAYS.items():
        assert record[name] == Array(array)
        np.testing.assert_array_equal(record[name].numpy(), array)


def test_arrays_survive_the_way_there_and_back_bit_for_bit() -> None:
    odd = {"a": np.array([np.nan, np.inf, -0.0, 1e-45], np.float32)}

    back = from_record(to_record(odd), manifest_of(odd))

    assert back["a"].tobytes() == odd["a"].tobytes()


def test_an_array_in_another_memory_order_is_sent_in_ours() -> None:
    transposed = {"a": ARRAYS["a"].T}

    back = from_record(to_record(transposed), manifest_of(transposed))

    np.testing.assert_array_equal(back["a"], ARRAYS["a"].T)


def test_reading_copies_nothing() -> None:
    record = to_record(ARRAYS)

    back = from_record(record, manifest_of(ARRAYS))

    assert not back["a"].flags.owndata
    assert not back["a"].flags.writeable


def test_a_shared_record_is_its_nodes_own_over_the_same_bytes() -> None:
    record = to_record(ARRAYS)

    shared = share_record(record)
    data = shared["a"].data
    shared["a"].data = b"changed"
    del shared["scalar"]

    assert data is record["a"].data
    assert from_record(record, manifest_of(ARRAYS)).keys() == ARRAYS.keys()


def _hostile(name: str) -> ArrayRecord:
    good = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = _saved(good)
    arrays = {
        "float64": Array(good.astype(np.float64)),
        "shape": Array(good.reshape(3, 2)),
        "stype": Array("float32", (2, 3), "torch", data),
        "object": Array("float32", (2, 3), "numpy.ndarray", _saved(good.astype(object))),
        "truncated": Array("float32", (2, 3), "numpy.ndarray", data[:-1]),
        "longer": Array("float32", (2, 3), "numpy.ndarray", data + b"\0"),
        "header": Array("float32", (2, 3), "numpy.ndarray", data.replace(b"<f4", b">f4")),
        "fortran": Array("float32", (2, 3), "numpy.ndarray", _saved(np.asfortranarray(good))),
        "garbage": Array("float32", (2, 3), "numpy.ndarray", b"\xff" * len(data)),
    }
    record = ArrayRecord()
    record["a"] = arrays[name]
    return record


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("float64", "expected a as float32 in numpy.ndarray, got 'float64'"),
        ("shape", r"expected a of shape \(2, 3\), got \(3, 2\)"),
        ("stype", "got 'float32' in 'torch'"),
        ("object", "expected 152 bytes for a, got"),
        ("truncated", "expected 152 bytes for a, got 151"),
        ("longer", "expected 152 bytes for a, got 153"),
        ("header", "expected the header of a as numpy.save writes it, got another"),
        ("fortran", "expected the header of a"),
        ("garbage", "expected the header of a"),
    ],
)
def test_a_hostile_array_is_refused(name: str, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        from_record(_hostile(name), manifest_of({"a": ARRAYS["a"]}))


def test_bytes_that_are_not_bytes_are_refused() -> None:
    record = to_record({"a": ARRAYS["a"]})
    record["a"].data = bytearray(record["a"].data)  # type: ignore[assignment]

    with pytest.raises(MessageError, match="expected 152 bytes for a, got bytearray"):
        from_record(record, manifest_of({"a": ARRAYS["a"]}))


def test_missing_and_unknown_names_are_named() -> None:
    record = to_record({"b": ARRAYS["a"], "\x1b[31m": ARRAYS["a"]})

    with pytest.raises(MessageError) as caught:
        from_record(record, manifest_of({"a": ARRAYS["a"]}))

    assert caught.value.message == (
        "expected exactly the 1 trained arrays, got 2: missing 'a'; unknown '\\x1b[31m', 'b'"
    )


@given(
    dtype=st.sampled_from(["float32", "float64", "object"]) | st.text(max_size=8),
    shape=st.sampled_from([(2, 3), (3, 2), ()])
    | st.lists(st.integers(-(2**70), 2**70), max_size=4).map(tuple),
    stype=st.just("numpy.ndarray") | st.text(max_size=8),
    data=st.binary(max_size=200)
    | st.builds(
        lambda at, byte: (d := _saved(ARRAYS["a"]))[:at] + bytes([byte]) + d[at + 1 :],
        st.integers(0, 151),
        st.integers(0, 255),
    ),
)
def test_whatever_arrives_is_the_expected_array_or_a_message_error(
    dtype: str, shape: tuple[int, ...], stype: str, data: bytes
) -> None:
    record = ArrayRecord()
    record["a"] = Array(dtype, shape, stype, data)
    error = None
    try:
        back = from_record(record, manifest_of({"a": ARRAYS["a"]}))
    except MessageError as caught:
        error = caught
    if error is not None:
        assert len(error.message) < 300
        assert error.message.isascii()
    else:
        assert back["a"].shape == (2, 3)
        assert back["a"].dtype == np.float32
        assert math.prod(back["a"].shape) == 6
