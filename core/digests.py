"""Canonical JSON and SHA-256 digests: the one definition of when two things are the same."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from core.errors import MessageError

_Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]
_Identity: TypeAlias = list[tuple[Any, ...]]

_CANONICAL: Final = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
)


def canonical_json(value: Any) -> bytes:
    """Encodes a JSON value with sorted keys, no spaces, ASCII only, and no NaN or infinity.

    Source: the members of RFC 8785 that matter for our values (strings, integers, booleans,
    lists, objects); floats are written as Python's shortest round-trip form.
    """
    return _CANONICAL.encode(value).encode("ascii")


def sha256_hex(data: bytes) -> str:
    """SHA-256 of ``data`` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of ``value``."""
    return sha256_hex(canonical_json(value))


class ArraysDigest:
    """``arrays_digest``, fed array by array and piece by piece, in the order of the names.

    Guarantees:
        After the same arrays, the result equals ``arrays_digest``'s, however their bytes were
        cut into pieces.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def begin(self, name: str, dtype: np.dtype[Any], shape: Sequence[int]) -> None:
        """Opens the next array; its bytes follow by ``update``, little-endian and in C order.

        Raises:
            MessageError: It holds neither numbers nor booleans, so that its bytes would not say
                what it is.
        """
        if dtype.kind not in "biufc":
            raise MessageError(
                f"expected an array of numbers or booleans for {name!r}, got {dtype}"
            )
        header = canonical_json([name, dtype.newbyteorder("<").str, list(shape)])
        self._sha256.update(len(header).to_bytes(8, "little"))
        self._sha256.update(header)

    def update(self, piece: bytes | memoryview) -> None:
        """The next bytes of the present array."""
        self._sha256.update(piece)

    def digest(self) -> bytes:
        """The digest's 32 bytes."""
        return self._sha256.digest()

    def hexdigest(self) -> str:
        """The digest as 64 lower-case hexadecimal digits."""
        return self._sha256.hexdigest()


def arrays_digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 over names, dtypes, shapes and little-endian bytes, in the order of the names.

    Guarantees:
        Two mappings have one digest only if they hold the same arrays bit for bit: each array
        is preceded by the length of its header, and the header tells the length of its bytes,
        so no two different mappings are fed to the hash alike. The order in memory and the
        byte order do not matter.

    Raises:
        MessageError: An array holds neither numbers nor booleans, so that its bytes would not
            say what it is.
    """
    digest = ArraysDigest()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.begin(name, array.dtype, array.shape)
        # Not np.ascontiguousarray: that makes a vector of length 1 of a scalar.
        little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class DigestMemory:
    """``arrays_digest``, computed once for arrays that come again over the very same bytes.

    In a simulation one set of weights goes to every site of a round, and each site checks it.
    Keeps the last arrays that it was shown. Safe to share between threads.

    Guarantees:
        The result equals ``arrays_digest``. Arrays are recognised only as read-only views of
        ``bytes``, which nothing can change, at the same place of the same objects, which are
        kept here, so that no other object can take their address.
    """

    def __init__(self) -> None:
        self._last: tuple[_Identity, dict[str, npt.NDArray[Any]], str] | None = None

    def digest(self, arrays: _Arrays) -> str:
        """The digest of ``arrays``.

        Raises:
            MessageError: See ``arrays_digest``.
        """
        identity = _identity(arrays)
        if identity is None:
            return arrays_digest(arrays)
        last = self._last
        if last is None or last[0] != identity:
            last = (identity, dict(arrays), arrays_digest(arrays))
            self._last = last
        return last[2]


def _identity(arrays: _Arrays) -> _Identity | None:
    """Which bytes the arrays show; ``None`` where they could change."""
    found: _Identity = []
    for name in sorted(arrays):
        array = arrays[name]
        owner: Any = array
        while isinstance(owner, np.ndarray):
            if owner.flags.writeable:
                return None
            owner = owner.base
        if not isinstance(owner, bytes):
            return None
        address = array.__array_interface__["data"][0]
        found.append((name, id(owner), address, array.dtype.str, array.shape, array.strides))
    return found
