"""A machine whose clock is wrong, for one process; the product knows nothing of it."""

from datetime import datetime, timedelta
from typing import Any

from privacy.identities import clock


def shift(offset: timedelta) -> None:
    """From now on this process's clock is off.

    The function's code is exchanged, so that whoever imported it by name is wrong as well.
    """
    module: Any = clock
    module.OFFSET = offset
    clock.utc_now.__code__ = _shifted.__code__


def _shifted() -> datetime:
    # Runs with the names of privacy.identities.clock.
    return (datetime.now(UTC) + OFFSET).replace(microsecond=0)  # type: ignore[name-defined]  # noqa: F821
