"""Named arrays in one file, each encrypted on its own: no array lies on the disk in the clear.

    8 bytes  length of what follows, little-endian
    ...      sealed: the list of [name, dtype, shape], as canonical JSON
    and so on for the bytes of each array, in the order of the list

What encrypts is given from outside. Memory: one array above what is kept anyway.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import numpy as np
import numpy.typing as npt

from core.digests import canonical_json
from core.errors import CheckpointError

_LENGTH_BYTES: Final = 8

Arrays = Mapping[str, npt.NDArray[Any]]


class Seal(Protocol):
    """Encrypts what lies on the disk, so that any change to it shows."""

    def seal(self, purpose: str, data: bytes) -> bytes:
        """``data``, encrypted for one purpose."""

    def open(self, purpose: str, data: bytes) -> bytes:
        """What was sealed for this purpose, or VaultError."""


def write_sealed_arrays(path: Path, arrays: Arrays, seal: Seal, purpose: str) -> None:
    """Writes ``arrays``, which are little-endian and in C order, to a new file."""
    with path.open("xb") as file:
        listing = [[name, a.dtype.str, list(a.shape)] for name, a in arrays.items()]
        _write(file, seal.seal(f"{purpose}/listing", canonical_json(listing)))
        for number, array in enumerate(arrays.values()):
            _write(file, seal.seal(f"{purpose}/{number}", array.tobytes()))


def read_sealed_arrays(path: Path, seal: Seal, purpose: str) -> dict[str, npt.NDArray[Any]]:
    """Reads what ``write_sealed_arrays`` wrote for the same purpose.

    Guarantees:
        The arrays are, bit for bit, what was written, or nothing is returned.

    Raises:
        VaultError: Sealed with another key, for another purpose, or altered.
        CheckpointError: The file does not hold whole arrays.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        listing = json.loads(seal.open(f"{purpose}/listing", _read(file, path)))
        arrays = {}
        for number, (name, dtype, shape) in enumerate(listing):
            data = seal.open(f"{purpose}/{number}", _read(file, path))
            # A copy: whoever restores may change it.
            arrays[name] = np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape).copy()
        if file.read(1):
            raise CheckpointError(f"expected {len(listing)} arrays in {path}, got more")
    return arrays


def _write(file: BinaryIO, blob: bytes) -> None:
    file.write(len(blob).to_bytes(_LENGTH_BYTES, "little"))
    file.write(blob)


def _read(file: BinaryIO, path: Path) -> bytes:
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length == 0 or length > path.stat().st_size - file.tell():
        raise CheckpointError(f"expected whole arrays in {path}, got a file that ends too early")
    return file.read(length)
