"""Noise on a grid: a sum is rounded to integers, gets integer noise, and is scaled back.

docs/adr/0005-noise-on-a-grid.md has the argument for the privacy of it.
"""

import bisect
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from core.errors import PrivacyError
from privacy.discrete_gaussian import DiscreteGaussian
from privacy.random_source import RandomStream

# Rounding adds at most this share to the sensitivity, and so to the noise.
MAX_ROUNDING_SHARE: Final = Fraction(1, 1024)
# Deviation in grid steps from which on discrete noise and rounded normal noise are one.
MIN_DEVIATION: Final = 2**23
# Half of what double precision counts exactly: sum and noise together stay below it.
_MAX_STEPS: Final = 2**52
# Powers of two with which fp32 can be scaled there and back.
_EXPONENTS: Final = range(-120, 65)

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32] | npt.NDArray[np.int64]


class GridNoise:
    """Gaussian noise for sums of one sensitivity and dimension.

    Guarantees:
        Let sums of neighbouring data sets be at most ``sensitivity`` apart (L2, over all
        coordinates together). What ``add_`` leaves is, but for a total variation distance of
        ``distance`` per coordinate, a function of the sum on the grid plus continuous normal
        noise of ``noise_multiplier`` times what neighbouring sums on the grid may be apart. Each
        value is an integer multiple of ``step``, a power of two, before it is rounded to fp32.

    Source: Mironov 2012 for the attack; docs/adr/0005-noise-on-a-grid.md for the proof.
    """

    def __init__(self, *, noise_multiplier: float, sensitivity: float, dimension: int) -> None:
        """Chooses the grid.

        Args:
            noise_multiplier: Deviation over sensitivity, finite and above 0.
            sensitivity: L2, in the units of the sums, finite and above 0.
            dimension: Coordinates of all sums together, 1 or more.

        Raises:
            PrivacyError: An argument is out of its range, or no grid is fine enough for fp32.
        """
        if not (0 < noise_multiplier < math.inf and 0 < sensitivity < math.inf and dimension > 0):
            raise PrivacyError(
                "expected a finite positive noise multiplier and sensitivity and a dimension of "
                f"1 or more, got {noise_multiplier}, {sensitivity} and {dimension}"
            )
        multiplier, clip = Fraction(noise_multiplier), Fraction(sensitivity)
        root = math.isqrt(dimension - 1) + 1  # of the dimension, rounded up
        exponent = _floor_log2(
            min(MAX_ROUNDING_SHARE * clip / root, multiplier * clip / MIN_DEVIATION)
        )
        if exponent not in _EXPONENTS:
            raise PrivacyError(
                f"expected a grid between 2**{_EXPONENTS[0]} and 2**{_EXPONENTS[-1]} for noise "
                f"{noise_multiplier} and clip {sensitivity}, got 2**{exponent}",
                hint="choose a clip and a noise multiplier nearer to 1",
            )
        self.dimension = dimension
        self.step = 2.0**exponent
        """The grid, in the units of the sums."""
        self.sensitivity_steps = clip / Fraction(self.step) + root
        """What neighbouring sums may be apart once rounded, in grid steps."""
        deviation = multiplier * self.sensitivity_steps
        # A discrete Gaussian is the rounded normal one of a variance smaller by a twelfth.
        self._noise = DiscreteGaussian(deviation**2 + Fraction(1, 12))
        self.distance = self._noise.distance + 400.0 / float(deviation) ** 4
        """Total variation, of each value's noise from rounded normal noise."""

    def add_(self, sums: Sequence[torch.Tensor], stream: RandomStream) -> None:
        """Rounds ``sums`` to the grid and adds noise, in place.

        Args:
            sums: 1-D, float32, of ``dimension`` values together, on any device.
            stream: Where the noise comes from.

        Raises:
            PrivacyError: The sums are not what was planned for, not finite, or too large for
                exact arithmetic. The sums are then worthless, and nothing may be released.
        """
        if any(one.dtype != torch.float32 or one.dim() != 1 for one in sums):
            raise PrivacyError("expected sums of one dimension in float32 before the noise")
        ends = torch.tensor([0, *[one.numel() for one in sums]]).cumsum(0).tolist()
        if ends[-1] != self.dimension:
            raise PrivacyError(
                f"expected sums of {self.dimension} values before the noise, got {ends[-1]}"
            )

        def add(start: int, noise: torch.Tensor) -> None:
            number = bisect.bisect_right(ends, start) - 1
            while len(noise):
                piece = sums[number][start - ends[number] :][: len(noise)]
                if len(piece):
                    self._add(piece, noise[: len(piece)])
                start, noise, number = start + len(piece), noise[len(piece) :], number + 1

        self._noise.each_block(stream, self.dimension, add)

    def _add(self, piece: torch.Tensor, noise: torch.Tensor) -> None:
        """Integers throughout; the last rounding, to fp32, follows the noise."""
        if piece.device.type == "cpu":
            self._add_on_this_thread(piece.numpy(), noise.numpy())
            return
        steps = (piece * (1.0 / self.step)).round_()
        self._check(float(steps.amin()), float(steps.amax()))
        total = steps.double().add_(noise.to(piece.device))
        piece.copy_(total).mul_(self.step)

    def _add_on_this_thread(self, piece: Floats, noise: Integers) -> None:
        """The same, bit for bit: torch would start threads of its own under each of ours."""
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            np.multiply(piece, 1.0 / self.step, out=piece)
            np.rint(piece, out=piece)
            low, high = float(piece.min()), float(piece.max())
        self._check(low, high)
        # Either way the total is exact before it is rounded to fp32; narrow is half the time.
        narrow = noise.dtype == np.int32 and max(-low, high) < 2**31 - self._noise.reach
        if narrow:
            total = np.add(noise, piece, out=noise, dtype=np.int32, casting="unsafe")
        else:
            total = np.add(noise, piece, dtype=np.float64)
        np.copyto(piece, total, casting="unsafe")
        np.multiply(piece, self.step, out=piece)

    def _check(self, low: float, high: float) -> None:
        limit = _MAX_STEPS - self._noise.reach
        if not (-limit <= low and high <= limit):
            raise PrivacyError(
                f"expected clipped sums that are finite and below {limit * self.step:g}, got one "
                "that is not: no noise hides it",
                hint="choose a smaller clip, batch or learning rate",
            )


def _floor_log2(value: Fraction) -> int:
    """The largest ``e`` with 2**e <= ``value``."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= value else exponent - 1
