"""Arrays as bytes, in each type that travels; fp32 is tested where Flower's records are."""

from io import BytesIO

import numpy as np
import pytest

from core.array_codec import ArraySpec, Encoded, array_spec, decode_arrays, encode_arrays
from core.errors import MessageError

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "uint16": np.array([[1, 0xFFFF]], np.uint16),
    "int8": np.array([-127, 0, 127], np.int8),
}


def spec_of(array: np.ndarray) -> ArraySpec:
    return array_spec(array.shape, array.dtype.newbyteorder("<"))


@pytest.mark.parametrize("name", ARRAYS)
def test_each_type_is_byte_for_byte_what_numpy_writes(name: str) -> None:
    buffer = BytesIO()
    np.save(buffer, ARRAYS[name])
    encoded = encode_arrays({"a": ARRAYS[name]})["a"]
    assert encoded == Encoded(name, ARRAYS[name].shape, "numpy.ndarray", buffer.getvalue())


@pytest.mark.parametrize("name", ARRAYS)
def test_each_type_survives(name: str) -> None:
    for array in (ARRAYS[name], ARRAYS[name].astype(ARRAYS[name].dtype.newbyteorder(">"))):
        back = decode_arrays(encode_arrays({"a": array}), {"a": spec_of(array)})["a"]
        assert back.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(back, ARRAYS[name])
        assert not back.flags.owndata


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "uint8", "bool", "object"])
def test_another_type_does_not_travel(dtype: str) -> None:
    with pytest.raises(
        MessageError, match=f"expected a as float32, uint16, int8 or uint32, got {dtype}"
    ):
        encode_arrays({"a": np.zeros(2, dtype)})


@pytest.mark.parametrize(("sent", "expected"), [("float32", "uint16"), ("int8", "float32")])
def test_one_type_is_not_taken_for_another(sent: str, expected: str) -> None:
    record = encode_arrays({"a": ARRAYS[sent]})
    with pytest.raises(MessageError, match=f"expected a as {expected} in numpy.ndarray, got"):
        decode_arrays(record, {"a": spec_of(ARRAYS[expected])})


def test_a_header_of_another_type_is_refused() -> None:
    """The name of the type is the record's; the header is the payload's."""
    record = encode_arrays({"a": ARRAYS["uint16"]})
    data = record["a"].data.replace(b"'<u2'", b"'<i2'")
    with pytest.raises(MessageError, match="expected the header of a as numpy.save writes it"):
        decode_arrays({"a": record["a"]._replace(data=data)}, {"a": spec_of(ARRAYS["uint16"])})
