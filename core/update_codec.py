"""How a site's update travels: as weights in fp32, or as a difference in fewer bits.

An encoding is applied to what the site is about to send, after its noise, and is a function of
that and of the global weights alone: post-processing, which leaves epsilon where it is. Only
arithmetic that IEEE 754 fixes to the last bit is used, so that every machine encodes and decodes
alike, and a simulation loses exactly what a deployment loses.

    fp32  the new weights, bit for bit
    bf16  name: the difference to the global weights, as the upper 16 bits of fp32 ("<u2")
    int8  name: the difference in steps of its block's scale, -127 to 127 ("i1")
          name.scale: the scale of each block of 256 in C order, fp32
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from core.array_codec import Manifest, Shaped, array_spec, manifest_of
from core.errors import ConfigError, MessageError, TrainingError

UpdateEncoding = Literal["fp32", "bf16", "int8"]
BLOCK: Final = 256

_Array = npt.NDArray[Any]
_Fp32 = npt.NDArray[np.float32]
_BF16: Final = np.dtype("<u2")
_INT8: Final = np.dtype("i1")
_STEPS: Final = 127
# Far from both ends of fp32: nothing below it overflows when it is rounded or scaled.
_TOO_LARGE: Final = 2.0**126
# Elements that are worked on at once: whole blocks, and few enough to stay in the cache.
_CHUNK: Final = 256 * BLOCK


def reply_manifest(global_arrays: Mapping[str, Shaped], encoding: UpdateEncoding) -> Manifest:
    """What the arrays of a reply must look like.

    Args:
        global_arrays: The weights that are sent out, or their manifest.
        encoding: The task's.

    Raises:
        ConfigError: A parameter has the name of another one's scales.
    """
    if encoding == "fp32":
        return manifest_of(global_arrays)
    dtype = _BF16 if encoding == "bf16" else _INT8
    manifest = {name: array_spec(_shape(a), dtype) for name, a in global_arrays.items()}
    if encoding == "int8":
        scales = {
            _scale_name(name): array_spec((_num_blocks(_shape(array)),))
            for name, array in global_arrays.items()
        }
        if clash := sorted(manifest.keys() & scales.keys()):
            raise ConfigError(
                f"expected no parameter named {clash[0]}, where the scales of another travel",
                hint='choose another transport.update_encoding, such as "bf16"',
            )
        manifest |= scales
    return dict(sorted(manifest.items()))


def encode_update(
    arrays: Mapping[str, _Array], global_arrays: Mapping[str, _Array], encoding: UpdateEncoding
) -> dict[str, _Array]:
    """What travels in place of ``arrays``.

    Guarantees:
        A function of its arguments, to the last bit. ``decode_update`` gives back, apart from
        the rounding of fp32 itself: in ``fp32`` the very weights; in ``bf16`` each difference
        within 1/256 of itself (and 2^-134); in ``int8`` each difference within 1/253 of the
        largest one of its block (and 2^-142).

    Args:
        arrays: The new weights, fp32.
        global_arrays: The weights that training began from: the same names and shapes.
        encoding: The task's.

    Raises:
        TrainingError: A difference is not finite, or 2^126 and larger.
    """
    if encoding == "fp32":
        return dict(arrays)
    encode = _encode_bf16 if encoding == "bf16" else _encode_int8
    travels: dict[str, _Array] = {}
    for name in sorted(arrays):
        travels |= encode(name, arrays[name], global_arrays[name])
    return travels


def decode_update(
    received: Mapping[str, _Array], global_arrays: Mapping[str, _Array], encoding: UpdateEncoding
) -> dict[str, _Fp32]:
    """The new weights in fp32. They may be not finite: that is for the receiver to check.

    Args:
        received: What ``decode_arrays`` read against ``reply_manifest``.
        global_arrays: The weights that were sent out, fp32.
        encoding: The task's.

    Raises:
        MessageError: Something that ``encode_update`` never writes: in ``bf16`` NaN or infinity;
            in ``int8`` a step of -128, or a scale that is negative or not finite.
    """
    if encoding == "fp32":
        return dict(received)
    decode = _decode_bf16 if encoding == "bf16" else _decode_int8
    return {name: decode(name, received, global_arrays[name]) for name in sorted(global_arrays)}


def _encode_bf16(name: str, new: _Array, old: _Array) -> dict[str, _Array]:
    halves = np.empty(new.size, _BF16)
    for part, blocks in _differences(name, new, old):
        bits = blocks.reshape(-1)[: part.stop - part.start].view(np.uint32)
        # Round to nearest, ties to even: the carry of half a unit runs into the exponent.
        halves[part] = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    return {name: halves.reshape(new.shape)}


def _decode_bf16(name: str, received: Mapping[str, _Array], old: _Array) -> _Fp32:
    halves, before = received[name].reshape(-1), old.reshape(-1)
    weights = np.empty(before.size, np.float32)
    for part in _parts(before.size):
        if ((halves[part] & 0x7F80) == 0x7F80).any():
            raise MessageError(f"expected finite differences, got NaN or infinity in {name}")
        difference = (halves[part].astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):
            np.add(before[part], difference, out=weights[part])
    return weights.reshape(old.shape)


def _encode_int8(name: str, new: _Array, old: _Array) -> dict[str, _Array]:
    """Source: block-wise absmax quantisation, Dettmers et al., arXiv:2110.02861, section 2.1."""
    steps = np.empty(new.size, _INT8)
    scales = np.empty(_num_blocks(new.shape), np.float32)
    for part, blocks in _differences(name, new, old):
        scale = np.abs(blocks).max(axis=1) / np.float32(_STEPS)
        scales[part.start // BLOCK : part.start // BLOCK + len(blocks)] = scale
        ratios = blocks / np.where(scale > 0, scale, 1)[:, None]
        # Clipped: a scale near the smallest number of fp32 was rounded far down.
        rounded = np.rint(ratios).clip(-_STEPS, _STEPS)
        steps[part] = rounded.reshape(-1)[: part.stop - part.start]
    return {name: steps.reshape(new.shape), _scale_name(name): scales}


def _decode_int8(name: str, received: Mapping[str, _Array], old: _Array) -> _Fp32:
    steps, before = received[name].reshape(-1), old.reshape(-1)
    scales = received[_scale_name(name)]
    if not (np.isfinite(scales) & ~np.signbit(scales)).all():
        raise MessageError(f"expected scales that are finite and not negative, got others: {name}")
    weights = np.empty(before.size, np.float32)
    for part in _parts(before.size):
        if (steps[part] < -_STEPS).any():
            raise MessageError(f"expected steps of -127 to 127, got -128 in {name}")
        blocks = slice(part.start // BLOCK, -(-part.stop // BLOCK))
        scale = np.repeat(scales[blocks], BLOCK)[: part.stop - part.start]
        with np.errstate(over="ignore"):
            np.add(before[part], scale * steps[part], out=weights[part])
    return weights.reshape(old.shape)


def _differences(name: str, new: _Array, old: _Array) -> Iterator[tuple[slice, _Fp32]]:
    """Parts of the flattened difference as rows of a block each, the last one filled with 0."""
    after, before = new.reshape(-1), old.reshape(-1)
    for part in _parts(after.size):
        length = part.stop - part.start
        blocks = np.zeros((_num_blocks((length,)), BLOCK), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(after[part], before[part], out=blocks.reshape(-1)[:length])
        # Written so that NaN, which is smaller than nothing, is refused as well.
        if not np.abs(blocks).max() < _TOO_LARGE:
            raise TrainingError(
                f"expected a finite update, got NaN, infinity or 2^126 and more in {name}",
                hint="lower train.learning_rate",
            )
        yield part, blocks


def _parts(size: int) -> Iterator[slice]:
    for start in range(0, size, _CHUNK):
        yield slice(start, min(start + _CHUNK, size))


def _num_blocks(shape: tuple[int, ...]) -> int:
    return -(-int(np.prod(shape, dtype=np.int64)) // BLOCK)


def _shape(array: Shaped) -> tuple[int, ...]:
    return tuple(array.shape)


def _scale_name(name: str) -> str:
    return f"{name}.scale"
