"""Records that a site keeps out of training, so that an audit can compare seen with unseen ones."""

import hmac
from dataclasses import dataclass

from core.data.records import Record, RecordSource, Subset, iterate

_RESOLUTION = 2**64


@dataclass(frozen=True)
class Split:
    """A site's records in two parts."""

    members: RecordSource
    """What the site trains on."""
    held_out: RecordSource
    """What no training sees."""


def hold_out(source: RecordSource, fraction: float, key: bytes) -> Split:
    """Cuts a site's records in two by a keyed hash.

    Guarantees:
        On which side a record falls is a function of the key and of that record alone: adding or
        removing another record moves none. All records of a person, and all records of the same
        text, fall on one side. With ``fraction`` 0 all are members, untouched.

    Args:
        source: The site's records.
        fraction: Share of persons, or of texts, to hold out; in [0, 1).
        key: 32 secret bytes of this site's.
    """
    if fraction == 0.0:
        return Split(source, Subset(source, ()))
    limit = int(fraction * _RESOLUTION)
    out = [_number(record, key) < limit for record in iterate(source)]
    members = Subset(source, [index for index, held in enumerate(out) if not held])
    return Split(members, Subset(source, [index for index, held in enumerate(out) if held]))


def _number(record: Record, key: bytes) -> int:
    name = f"text\0{record.text}" if record.person is None else f"person\0{record.person}"
    return int.from_bytes(hmac.digest(key, name.encode(), "sha256")[:8], "big")
