"""Encodings of updates: what is lost, by how much at most, and what is refused."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from core.array_codec import decode_arrays, encode_arrays, manifest_of
from core.config import TransportSection
from core.digests import arrays_digest
from core.errors import ConfigError, MessageError, TrainingError
from core.update_codec import (
    BLOCK,
    UpdateEncoding,
    decode_update,
    encode_update,
    reply_manifest,
)

Array = npt.NDArray[Any]

ENCODINGS: tuple[UpdateEncoding, ...] = get_args(UpdateEncoding)
SMALLER: tuple[UpdateEncoding, ...] = ("bf16", "int8")
# Whatever a model may hold, and the ends of fp32 where rounding is least kind.
VALUES = npst.arrays(
    np.float32,
    st.integers(0, 3 * BLOCK + 7),
    elements=st.floats(-(2.0**124), 2.0**124, width=32)
    | st.floats(-2, 2, width=32)
    | st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-44, 1.2e-38, 2.0**124]),
    fill=st.floats(-1, 1, width=32),
)


def travel(new: Array, old: Array, encoding: UpdateEncoding) -> Array:
    """One array there and back, by way of its bytes."""
    sent = encode_arrays(encode_update({"w": new}, {"w": old}, encoding))
    received = decode_arrays(sent, reply_manifest({"w": old}, encoding))
    decoded = decode_update(received, {"w": old}, encoding)["w"]
    assert (decoded.shape, decoded.dtype) == (old.shape, np.float32)
    return decoded


def block_largest(difference: Array) -> Array:
    """Each element's block's largest magnitude, block by block, as plainly as possible."""
    flat = np.abs(difference.reshape(-1))
    blocks = [flat[start : start + BLOCK] for start in range(0, flat.size, BLOCK)]
    filled = [np.full(len(block), block.max()) for block in blocks] or [flat]
    return np.concatenate(filled).reshape(difference.shape)


def bound(new: Array, old: Array, encoding: UpdateEncoding) -> Array:
    """The largest error that ``encode_update`` promises, with the rounding of fp32's sum."""
    difference = new.astype(np.float64) - old
    if encoding == "fp32":
        return np.zeros(new.shape)
    if encoding == "bf16":
        lost = np.abs(difference) / 256 + 2.0**-134
    else:
        lost = block_largest(difference) / 253 + 2.0**-142
    return lost + 2.0**-24 * (np.abs(new.astype(np.float64)) + lost)


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(values=VALUES, seed=st.integers(0, 99), step=st.sampled_from([0.0, 1e-30, 1e-4, 1.0, 1e30]))
def test_no_weight_is_further_off_than_promised(
    encoding: UpdateEncoding, values: Array, seed: int, step: float
) -> None:
    generator = np.random.default_rng(seed)
    change = generator.standard_normal(values.size) * step
    for old, new in (
        (values, (values + change).astype(np.float32)),
        (np.zeros_like(values), values),
        (values, np.zeros_like(values)),
        (values, values[::-1].copy()),
    ):
        error = np.abs(travel(new, old, encoding).astype(np.float64) - new)
        assert (error <= bound(new, old, encoding)).all()


@pytest.mark.parametrize("encoding", SMALLER)
def test_the_bound_is_no_larger_than_needed(encoding: UpdateEncoding) -> None:
    """An update right between two steps loses nearly all that the bound allows."""
    old = np.zeros(4, np.float32)
    halfway = [1 + 1 / 256] * 4 if encoding == "bf16" else [127.0, 0.5, 2.5, 126.5]
    new = np.array(halfway, np.float32)
    error = np.abs(travel(new, old, encoding) - new).max()
    assert error > 0.98 * bound(new, old, encoding).max()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 4), (256,), (257,), (2, 0, 3), (300, 250)])
def test_every_shape_survives(shape: tuple[int, ...], encoding: UpdateEncoding) -> None:
    generator = np.random.default_rng(0)
    old = np.asarray(generator.standard_normal(shape), np.float32)
    new = np.asarray(old + generator.standard_normal(shape) / 100, np.float32)
    decoded = travel(new, old, encoding)
    assert (np.abs(decoded - new) <= bound(new, old, encoding)).all()


def test_fp32_loses_nothing() -> None:
    new = np.array([np.nan, np.inf, -0.0, 1e-45, 0.1], np.float32)
    assert travel(new, np.ones(5, np.float32), "fp32").tobytes() == new.tobytes()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_update_is_no_update(encoding: UpdateEncoding) -> None:
    old = np.random.default_rng(3).standard_normal(1000, dtype=np.float32)
    assert travel(old, old, encoding).tobytes() == old.tobytes()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_array_in_another_memory_order_travels_alike(encoding: UpdateEncoding) -> None:
    generator = np.random.default_rng(1)
    old = generator.standard_normal((40, 30), dtype=np.float32)
    new = generator.standard_normal((40, 30), dtype=np.float32)
    plain = encode_update({"w": new}, {"w": old}, encoding)
    turned = {"w": np.asfortranarray(new)}, {"w": np.asfortranarray(old)}
    assert arrays_digest(encode_update(*turned, encoding)) == arrays_digest(plain)
    back = decode_update(plain, turned[1], encoding)["w"]
    assert back.tobytes() == decode_update(plain, {"w": old}, encoding)["w"].tobytes()


# The bytes are a promise to peers of another version: each was worked out by hand.
BF16_BITS = {
    1.0: 0x3F80,
    -2.0: 0xC000,
    0.0: 0x0000,
    1 + 2**-8: 0x3F80,  # a tie, to even: down
    1 + 3 * 2**-8: 0x3F82,  # a tie, to even: up
    1 + 2**-8 + 2**-23: 0x3F81,  # above the tie
    2 - 2**-23: 0x4000,  # the carry runs into the exponent
    2.0**-133: 0x0001,
    2.0**-134: 0x0000,  # a tie, to even
}


@pytest.mark.parametrize(("value", "bits"), BF16_BITS.items())
def test_the_bits_of_bf16(value: float, bits: int) -> None:
    new = {"w": np.array([value], np.float32)}
    sent = encode_update(new, {"w": np.zeros(1, np.float32)}, "bf16")
    assert sent["w"].dtype == np.dtype("<u2")
    assert sent["w"].tolist() == [bits]


@given(values=VALUES)
def test_bf16_rounds_as_torch_does(values: Array) -> None:
    sent = encode_update({"w": values}, {"w": np.zeros_like(values)}, "bf16")["w"]
    rounded = torch.tensor(values).to(torch.bfloat16)
    assert sent.tobytes() == rounded.view(torch.int16).numpy().tobytes()


def test_the_steps_and_scales_of_int8() -> None:
    new = np.zeros(2 * BLOCK + 2, np.float32)
    new[:6] = [254, -254, 1, 3, -2.5, 253]  # a scale of 2; ties to even
    new[2 * BLOCK :] = [-12.7, 6.3]
    sent = encode_update({"w": new}, {"w": np.zeros_like(new)}, "int8")
    assert {name: array.dtype.str for name, array in sent.items()} == {
        "w": "|i1",
        "w.scale": "<f4",
    }
    assert sent["w.scale"].tolist() == pytest.approx([2.0, 0.0, 0.1])
    assert sent["w"][:7].tolist() == [127, -127, 0, 2, -1, 126, 0]
    assert sent["w"][-2:].tolist() == [-127, 63]
    assert not sent["w"][7:-2].any()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_travels_is_what_the_manifest_says(encoding: UpdateEncoding) -> None:
    arrays = {
        "b": np.ones((3, 100), np.float32),
        "a": np.ones((), np.float32),
        "c": np.ones((0, 4), np.float32),
    }
    old = {name: np.zeros_like(array) for name, array in arrays.items()}
    manifest = reply_manifest(old, encoding)
    sent = encode_arrays(encode_update(arrays, old, encoding))
    assert list(manifest) == sorted(manifest)
    assert {name: (array.dtype, array.shape, len(array.data)) for name, array in sent.items()} == {
        name: (spec.dtype.name, spec.shape, spec.payload_bytes) for name, spec in manifest.items()
    }
    assert reply_manifest(manifest_of(arrays), encoding) == manifest


def test_how_many_bytes_are_saved() -> None:
    old = {"w": np.zeros((512, 512), np.float32)}
    size = {
        encoding: sum(array.nbytes for array in encode_update(old, old, encoding).values())
        for encoding in ENCODINGS
    }
    assert size["bf16"] / size["fp32"] == 1 / 2
    assert size["int8"] / size["fp32"] == 1 / 4 + 1 / BLOCK


def test_every_encoding_can_be_configured() -> None:
    for encoding in ENCODINGS:
        assert TransportSection(update_encoding=encoding).update_encoding == encoding


def test_a_parameter_with_the_name_of_scales_is_refused() -> None:
    arrays = {"norm": np.ones(2, np.float32), "norm.scale": np.ones(2, np.float32)}
    with pytest.raises(ConfigError, match="expected no parameter named norm.scale") as caught:
        reply_manifest(arrays, "int8")
    assert "choose another transport.update_encoding" in caught.value.hint
    for encoding in ("fp32", "bf16"):
        assert reply_manifest(arrays, encoding).keys() == arrays.keys()


@pytest.mark.parametrize("encoding", SMALLER)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**126, -3e38])
def test_an_update_that_cannot_be_encoded_is_not_sent(
    value: float, encoding: UpdateEncoding
) -> None:
    new = np.zeros(70_000, np.float32)
    new[69_999] = value
    with pytest.raises(TrainingError, match="expected a finite update, got NaN.* in w"):
        encode_update({"w": new}, {"w": np.zeros_like(new)}, encoding)


def test_the_largest_update_that_can_be_encoded_comes_back_finite() -> None:
    for encoding in SMALLER:
        largest = np.full(3, np.nextafter(np.float32(2.0**126), np.float32(0)), np.float32)
        assert np.isfinite(travel(largest, np.zeros(3, np.float32), encoding)).all()


def _replaced(name: str, index: int, value: Any) -> Callable[[dict[str, Array]], None]:
    def replace(received: dict[str, Array]) -> None:
        received[name].reshape(-1)[index] = value

    return replace


NEVER_WRITTEN: list[tuple[UpdateEncoding, Callable[[dict[str, Array]], None], str]] = [
    ("bf16", _replaced("w", 0, 0x7F80), "expected finite differences, got NaN or infinity in w"),
    ("bf16", _replaced("w", -1, 0xFF80), "expected finite differences, got NaN or infinity in w"),
    ("bf16", _replaced("w", 9, 0x7FC0), "expected finite differences, got NaN or infinity in w"),
    ("bf16", _replaced("w", 9, 0xFFFF), "expected finite differences, got NaN or infinity in w"),
    ("int8", _replaced("w", 9, -128), "expected steps of -127 to 127, got -128 in w"),
    ("int8", _replaced("w", -1, -128), "expected steps of -127 to 127, got -128 in w"),
    ("int8", _replaced("w.scale", 0, -1), "expected scales that are finite and not negative"),
    ("int8", _replaced("w.scale", 1, -0.0), "expected scales that are finite and not negative"),
    ("int8", _replaced("w.scale", -1, np.nan), "expected scales that are finite and not"),
    ("int8", _replaced("w.scale", 0, np.inf), "expected scales that are finite and not negative"),
    ("int8", _replaced("w.scale", 0, -np.inf), "expected scales that are finite and not"),
]


@pytest.mark.parametrize(("encoding", "damage", "message"), NEVER_WRITTEN)
def test_what_is_never_written_is_refused(
    encoding: UpdateEncoding, damage: Callable[[dict[str, Array]], None], message: str
) -> None:
    old = {"w": np.zeros((300, 250), np.float32)}
    received = encode_update({"w": old["w"] + 1}, old, encoding)
    decode_update(received, old, encoding)
    damage(received)
    with pytest.raises(MessageError, match=message):
        decode_update(received, old, encoding)


@pytest.mark.parametrize("encoding", SMALLER)
@given(data=st.data())
def test_any_bytes_of_the_right_size_are_weights_or_a_message_error(
    encoding: UpdateEncoding, data: st.DataObject
) -> None:
    old = {"w": np.linspace(-3e38, 3e38, 7, dtype=np.float32)}
    received = {
        name: data.draw(npst.arrays(spec.dtype, spec.shape))
        for name, spec in reply_manifest(old, encoding).items()
    }
    try:
        weights = decode_update(received, old, encoding)
    except MessageError:
        return
    assert {name: array.shape for name, array in weights.items()} == {"w": (7,)}
    assert not np.isnan(weights["w"]).any()


def test_arguments_are_left_alone() -> None:
    old = {"w": np.arange(600, dtype=np.float32)}
    new = {"w": np.arange(600, dtype=np.float32) * 2}
    for array in (old["w"], new["w"]):
        array.flags.writeable = False
    for encoding in ENCODINGS:
        received = encode_update(new, old, encoding)
        for array in received.values():
            array.flags.writeable = False
        decode_update(received, old, encoding)
