"""Timestamps of signed documents, and how far two honest clocks may be apart."""

from datetime import UTC, datetime, timedelta
from typing import Final

from core.errors import IdentityError

CLOCK_ALLOWANCE: Final = timedelta(minutes=5)
"""Clocks of two machines may differ by this much; no signed request is good for longer."""

_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"


def utc_now() -> datetime:
    """Now, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


def write_timestamp(time: datetime) -> str:
    """``time`` as ``core.wire.documents.Timestamp``; ``time`` must know its zone."""
    if time.tzinfo is None:
        raise IdentityError(f"expected a time with its zone, got {time.isoformat()}")
    return time.astimezone(UTC).strftime(_FORMAT)


def read_timestamp(text: str) -> datetime:
    """The time that a document names.

    Raises:
        IdentityError: There is no such time, such as a 30 February.
    """
    try:
        return datetime.strptime(text, _FORMAT).replace(tzinfo=UTC)
    except ValueError as error:
        raise IdentityError(f"expected a time like 2026-01-31T12:00:00Z, got {text!r}") from error


def check_fresh(what: str, time: str, now: datetime) -> None:
    """Checks that a signed request was made just now.

    **Guarantees**: Returns only for a time at most ``CLOCK_ALLOWANCE`` before or after ``now``, so
    that a request which was recorded serves nobody for longer.

    Raises:
        IdentityError: It is older, or from the future.
    """
    apart = now - read_timestamp(time)
    if abs(apart) > CLOCK_ALLOWANCE:
        raise IdentityError(
            f"expected {what} of the last {CLOCK_ALLOWANCE.seconds // 60} minutes, got one of "
            f"{time} at {write_timestamp(now)}",
            hint="set the clocks of both machines (NTP)",
        )
