"""Named arrays as Flower's ``ArrayRecord`` and back; ``core.array_codec`` does the work."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
from flwr.app import Array, ArrayRecord

from core.array_codec import Manifest, decode_arrays, encode_arrays


def to_record(arrays: Mapping[str, npt.NDArray[Any]]) -> ArrayRecord:
    """Serialises arrays, in the order of their names."""
    record = ArrayRecord()
    for name, fields in encode_arrays(arrays).items():
        record[name] = Array(*fields)
    return record


def share_record(record: ArrayRecord) -> ArrayRecord:
    """A record of its own for another node, over the same immutable bytes."""
    shared = ArrayRecord()
    for name, array in record.items():
        shared[name] = copy.copy(array)
    return shared


def from_record(record: ArrayRecord, manifest: Manifest) -> dict[str, npt.NDArray[Any]]:
    """Reads exactly the arrays of ``manifest``, or raises MessageError."""
    return decode_arrays(dict(record), manifest)
