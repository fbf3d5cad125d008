"""Named arrays as the bytes of ``numpy.save`` and back: one copy out, none in.

Weights are fp32; an update may travel in smaller numbers, see ``core.update_codec``.

The receiver knows which arrays it expects, so it knows their headers byte for byte: a payload is
that header and the right number of bytes after it, or it is refused. Nothing that a peer sent is
ever parsed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from core.errors import MessageError

_STYPE: Final = "numpy.ndarray"
FP32: Final = np.dtype("<f4")
UINT32: Final = np.dtype("<u4")
# What may travel: fp32, the bits of bf16 and int8, and masked integers.
_WIRE_DTYPES: Final = (FP32, np.dtype("<u2"), np.dtype("i1"), UINT32)


class Shaped(Protocol):
    """An array, or what is known of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Received(Protocol):
    """An array as a peer sent it: nothing of it is trusted."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


class Encoded(NamedTuple):
    """The fields of Flower's ``Array``, in its order."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


@dataclass(frozen=True)
class ArraySpec:
    """One expected array: its shape and type, and the header its payload must begin with."""

    shape: tuple[int, ...]
    header: bytes
    payload_bytes: int
    dtype: np.dtype[Any] = FP32

    @cached_property
    def dtype_name(self) -> str:
        """What Flower calls the type; numpy works it out anew each time that it is asked."""
        return str(self.dtype.name)


Manifest = Mapping[str, ArraySpec]


def manifest_of(arrays: Mapping[str, Shaped]) -> Manifest:
    """What a record of fp32 arrays with the names and shapes of ``arrays`` must look like."""
    return {name: array_spec(tuple(arrays[name].shape)) for name in sorted(arrays)}


@lru_cache(maxsize=1024)  # a model has few shapes, and every reply has all of them
def array_spec(shape: tuple[int, ...], dtype: np.dtype[Any] = FP32) -> ArraySpec:
    """What one array of this shape and type must look like."""
    buffer = BytesIO()
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return ArraySpec(shape, buffer.getvalue(), len(buffer.getvalue()) + size, dtype)


def encode_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Encoded]:
    """Serialises arrays, in the order of their names, exactly as ``numpy.save`` would.

    Raises:
        MessageError: An array is of a type that does not travel.
    """
    encoded = {}
    for name in sorted(arrays):
        shape, dtype = tuple(arrays[name].shape), arrays[name].dtype.newbyteorder("<")
        if dtype not in _WIRE_DTYPES:
            raise MessageError(f"expected {name} as float32, uint16, int8 or uint32, got {dtype}")
        spec = array_spec(shape, dtype)
        flat = np.ascontiguousarray(arrays[name], dtype=dtype).reshape(-1)
        data = b"".join((spec.header, flat.view(np.uint8).data))
        encoded[name] = Encoded(spec.dtype_name, shape, _STYPE, data)
    return encoded


def decode_arrays(
    record: Mapping[str, Received], manifest: Manifest
) -> dict[str, npt.NDArray[Any]]:
    """Reads the expected arrays as read-only views of the record's bytes.

    Guarantees:
        The result holds exactly the names, shapes and types of ``manifest``, or
        ``MessageError`` is raised, whatever the record holds. No header is parsed and nothing
        is unpickled.

    Raises:
        MessageError: A name is missing or unknown; a type, a shape, a header or a length differs.
    """
    missing, unknown = set(manifest) - set(record), set(record) - set(manifest)
    if missing or unknown:
        raise MessageError(
            f"expected exactly the {len(manifest)} trained arrays, got {len(record)}: "
            f"missing {_some(missing)}; unknown {_some(unknown)}"
        )
    return {name: _view(name, record[name], spec) for name, spec in manifest.items()}


def _view(name: str, array: Received, spec: ArraySpec) -> npt.NDArray[Any]:
    if array.stype != _STYPE or array.dtype != spec.dtype_name:
        raise MessageError(
            f"expected {name} as {spec.dtype_name} in {_STYPE}, "
            f"got {_shown(array.dtype)} in {_shown(array.stype)}"
        )
    if array.shape != spec.shape:
        raise MessageError(f"expected {name} of shape {spec.shape}, got {_shown(array.shape)}")
    data = array.data
    if not isinstance(data, bytes) or len(data) != spec.payload_bytes:
        size = len(data) if isinstance(data, bytes) else type(data).__name__
        raise MessageError(f"expected {spec.payload_bytes} bytes for {name}, got {size}")
    if not data.startswith(spec.header):
        raise MessageError(f"expected the header of {name} as numpy.save writes it, got another")
    return np.ndarray(spec.shape, spec.dtype, buffer=data, offset=len(spec.header))


def _some(names: set[str]) -> str:
    return ", ".join(_shown(name) for name in sorted(names)[:4]) or "none"


def _shown(value: object) -> str:
    """A peer's value, short and without control characters."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
