"""Limits: the sizes that frames and gRPC's settings share, and the checks of fields.

Imports nothing large, so that gRPC can be set up before anything else is imported.
"""

import re
from typing import Final

from core.errors import MessageError

CHUNK_BYTES: Final = 1 << 20
# The largest are a chunk, and a Begin with all its documents: 1 MiB, and room for the other fields.
MAX_FRAME_BYTES: Final = CHUNK_BYTES + 64 * 1024


def matches(
    field: str, value: str, pattern: re.Pattern[str], *, may_be_empty: bool = False
) -> None:
    """``value`` is what ``pattern`` says, from its first character to its last."""
    if pattern.fullmatch(value) is None and not (may_be_empty and not value):
        raise MessageError(f"expected {field} as {pattern.pattern}, got {_shown(value)}")


def within(field: str, value: float, low: float, high: float) -> None:
    """``value`` is a number from ``low`` to ``high``."""
    if not low <= value <= high:  # NaN is nowhere
        raise MessageError(f"expected {field} of {low} to {high}, got {value!r}")


def sized(field: str, value: bytes, size: int) -> None:
    """``value`` has ``size`` bytes."""
    if len(value) != size:
        raise MessageError(f"expected {field} of {size} bytes, got {len(value)}")


def at_most(what: str, count: int, limit: int) -> None:
    """There are no more than ``limit``."""
    if count > limit:
        raise MessageError(f"expected at most {limit} {what}, got {count}")


def _shown(value: str) -> str:
    """A peer's text for our log: short, on one line, without control characters."""
    text = ascii(value[:60])
    return text if len(value) <= 60 else text + "..."
