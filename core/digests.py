"""Canonical JSON and SHA-256 digests: the one definition of when two things are the same."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import MessageError


def canonical_json(value: Any) -> bytes:
    """Encodes a JSON value with sorted keys, no spaces, ASCII only, and no NaN or infinity.

    Source: the members of RFC 8785 that matter for our values (strings, integers, booleans,
    lists, objects); floats are written as Python's shortest round-trip form.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def sha256_hex(data: bytes) -> str:
    """SHA-256 of ``data`` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of ``value``."""
    return sha256_hex(canonical_json(value))


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
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if array.dtype.kind not in "biufc":
            raise MessageError(
                f"expected an array of numbers or booleans for {name!r}, got {array.dtype}"
            )
        # Not np.ascontiguousarray: that makes a vector of length 1 of a scalar.
        little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        header = canonical_json([name, little.dtype.str, list(little.shape)])
        digest.update(len(header).to_bytes(8, "little"))
        digest.update(header)
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
