"""How the records of a step are cut among processes."""

import math
from collections.abc import Sequence

from core.errors import ConfigError


def check_shares(shares: Sequence[float], size: int) -> None:
    """Raises ConfigError unless there is a share for each process, and one is above zero."""
    fits = len(shares) == size and all(0 <= share < math.inf for share in shares)
    if not fits or not 0 < sum(shares) < math.inf:
        raise ConfigError(
            f"expected {size} shares, finite and not negative, one for each process, "
            f"got {list(shares)}"
        )


def split(count: int, shares: Sequence[float]) -> list[int]:
    """Cuts ``count`` records into whole parts in proportion to ``shares``.

    Guarantees:
        The parts sum to ``count``, and each is less than one record away from its exact share;
        a share of zero gets none.

    Args:
        count: Records of a step; 0 is one of its values.
        shares: Not negative, and not all zero; only their ratios matter.

    Source: the largest remainder method; ties go to the first.
    """
    total = math.fsum(shares)
    exact = [count * (share / total) for share in shares]
    parts = [min(count, math.floor(part)) for part in exact]
    wanting = [i for i, share in enumerate(shares) if share > 0]
    wanting.sort(key=lambda i: parts[i] - exact[i])
    for i in wanting[: count - sum(parts)]:
        parts[i] += 1
    return parts
