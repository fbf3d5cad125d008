"""Tables that turn uniform bits into draws of a discrete Gaussian, made by integer arithmetic.

A table spreads the outcomes over 2**16 cells, as many to each as its probability fills whole. What
is left over, a few per cent, fills the last cells, which mean: draw again, from the distribution
of the left-overs. Three stages of cells, then 128 bits at once, where one draw in ten thousand
gets.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from core.errors import PrivacyError
from privacy.random_source import RandomStream

CELLS: Final = 1 << 16
STAGES: Final = 3
MAX_TABLE_VARIANCE: Final = Fraction(640**2)  # above it few draws are settled by the first cells
TABLE_DISTANCE: Final = 2.0**-120
_WEIGHT_BITS: Final = 320
_DECIMAL_DIGITS: Final = 120  # more than _WEIGHT_BITS
_TAIL_NATS: Final = 89  # exp(-89) < 2**-128 of the mass is cut
_LAST_BITS: Final = 128

Outcomes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Stage:
    """Which outcome each of 2**16 cells stands for."""

    outcomes: torch.Tensor
    """(CELLS,) int32."""
    sure: int
    """Cells from here on stand for none: draw from the next stage."""


@dataclass(frozen=True)
class Table:
    """A discrete Gaussian on the integers from ``-reach`` to ``reach``.

    Guarantees:
        Drawn from ideal bits, the outcomes are within ``TABLE_DISTANCE`` (total variation) of the
        discrete Gaussian over all integers: ``exp(-k**2 / (2 variance))``, normalised.
    """

    reach: int
    stages: tuple[Stage, ...]
    bounds: tuple[int, ...]
    """Of the last step: outcome ``k`` is drawn below ``bounds[k + reach]``, out of 2**128."""

    def refine(self, stream: RandomStream, count: int, stage: int = 1) -> Outcomes:
        """``count`` draws of what the cells before ``stage`` left over."""
        if stage == STAGES:
            return self._last(stream, count)
        here = self.stages[stage]
        cells = stream.cells(count)
        drawn: Outcomes = here.outcomes.numpy()[cells]
        unsure = np.flatnonzero(cells >= here.sure)
        if unsure.size:
            drawn[unsure] = self.refine(stream, unsure.size, stage + 1)
        return drawn

    def _last(self, stream: RandomStream, count: int) -> Outcomes:
        words = stream.words(2 * count).tolist()
        numbers = [high << 64 | low for high, low in zip(words[::2], words[1::2], strict=True)]
        found = [bisect.bisect_right(self.bounds, number) - self.reach for number in numbers]
        return np.array(found, dtype=np.int32)


@lru_cache(maxsize=32)
def gaussian_table(variance: Fraction) -> Table:
    """The table of a variance, in squared grid steps, from 1 to ``MAX_TABLE_VARIANCE``.

    Raises:
        PrivacyError: The variance is out of that range.

    Source: Marsaglia, Tsang and Wang 2004, Fast generation of discrete random variables, for the
    cells; Canonne, Kamath and Steinke 2020 for the distribution.
    """
    if not 1 <= variance <= MAX_TABLE_VARIANCE:
        raise PrivacyError(
            f"expected a table's variance from 1 to {MAX_TABLE_VARIANCE}, got {float(variance):g}"
        )
    half = _weights(variance)
    reach = len(half) - 1
    mass = half[:0:-1] + half
    stages = []
    for _ in range(STAGES):
        stage, mass = _stage(mass)
        stages.append(stage)
    return Table(reach, tuple(stages), _bounds(mass))


def _weights(variance: Fraction) -> list[int]:
    """``exp(-k**2 / (2 variance))`` for k = 0, 1, ..., in units of 2**-320.

    Each is a product of powers of ``q = exp(-1 / (2 variance))``; cutting the products costs
    less than ``2 (k + 1)**2`` units, which is below 2**-290.
    """
    with localcontext() as context:
        context.prec = _DECIMAL_DIGITS
        exponent = Decimal(-variance.denominator) / Decimal(2 * variance.numerator)
        q = int(exponent.exp() * (1 << _WEIGHT_BITS))
    square = q * q >> _WEIGHT_BITS
    weights, ratio = [1 << _WEIGHT_BITS], q
    for _ in range(math.isqrt(math.ceil(2 * _TAIL_NATS * variance)) + 1):
        weights.append(weights[-1] * ratio >> _WEIGHT_BITS)
        ratio = ratio * square >> _WEIGHT_BITS
    return weights


def _stage(mass: Sequence[int]) -> tuple[Stage, list[int]]:
    """Whole cells for ``mass``, which lies symmetrically around 0, and what is left over."""
    total, reach = sum(mass), len(mass) // 2
    whole, rest = [], []
    for one in mass:
        count, left = divmod(one * CELLS, total)
        whole.append(count)
        rest.append(left)
    sure = sum(whole)
    outcomes = np.zeros(CELLS, dtype=np.int32)
    outcomes[:sure] = np.repeat(np.arange(-reach, reach + 1, dtype=np.int32), whole)
    return Stage(torch.from_numpy(outcomes), sure), rest


def _bounds(mass: Sequence[int]) -> tuple[int, ...]:
    total, so_far, bounds = sum(mass), 0, []
    for one in mass:
        so_far += one
        bounds.append((so_far << _LAST_BITS) // total)
    return tuple(bounds)
