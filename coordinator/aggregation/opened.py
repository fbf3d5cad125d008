"""What an opened sum says: the weighted mean of the updates, or the gradient of a step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from coordinator.strategies import Contribution
from core.errors import SumNormError
from core.messages import TrainTask
from core.parameters import cut
from privacy.secure_aggregation.context import AttemptContext

SUM: Final = "sum"

Arrays = Mapping[str, npt.NDArray[Any]]
Integers = npt.NDArray[np.int32]


def contribution_of_sum(
    total: Integers,
    context: AttemptContext,
    survivors: Sequence[str],
    order: TrainTask,
    global_arrays: Arrays,
) -> Contribution:
    """The one contribution that stands for all survivors.

    Args:
        total: The opened sum, one vector.
        context: The attempt's.
        survivors: Whose updates it holds.
        order: Any of the attempt's orders.
        global_arrays: The weights that training began from.

    Returns:
        New weights, the weighted mean of the survivors'; in mode ``distributed`` the noised sum of
        clipped gradients, whose weight is the public size of the survivors together.

    Raises:
        SumNormError: The sum is longer than so many updates can make it.
    """
    sizes = dict(context.weights)
    weight = sum(sizes[site] for site in survivors)
    if order.terms.privacy.mode == "distributed":
        return Contribution(SUM, weight, cut(context.fixed_point().decode(total), global_arrays))
    whole = context.total_fraction(survivors)
    _check_norm(total, context, whole, len(survivors), order)
    mean = context.fixed_point().decode(total, divisor=whole)
    arrays = cut(mean, global_arrays)
    for name, array in arrays.items():
        np.add(array, global_arrays[name], out=array)
    return Contribution(SUM, weight, arrays)


def _check_norm(
    total: Integers, context: AttemptContext, whole: float, survivors: int, order: TrainTask
) -> None:
    """Each update is within the terms' norm, times its weight, but for rounding to the grid."""
    section = order.terms.secure_aggregation
    limit = math.inf if section is None else section.max_update_norm * whole
    rounding = survivors * math.sqrt(total.size) / 2
    norm = _norm(total)
    if norm > limit / float.fromhex(context.step) + rounding:
        raise SumNormError(
            f"expected a sum of norm {limit:g} at most, "
            f"got {norm * float.fromhex(context.step):.4g}",
            hint="a site sent something else than an update; none can be told from the sum",
        )


def _norm(total: Integers) -> float:
    """L2, in grid steps."""
    parts = range(0, total.size, 1 << 16)
    blocks = (total[start : start + (1 << 16)].astype(np.float64) for start in parts)
    # Not np.dot: see difference_norm.
    return math.sqrt(math.fsum(float(np.einsum("i,i->", block, block)) for block in blocks))
