"""The grid on which several sites' clipped sums are rounded, and each site's share of the noise.

The coordinator opens the sum of all sites and nothing else; the noise in it is the sum of their
shares, so large that the honest sites that are left give the whole of it.
docs/adr/0007-distributed-noise.md has the argument for the privacy of it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from core.errors import CohortTooSmallError, ModulusCapacityError, PrivacyError, ValueRangeError
from core.messages import DpSgdTerms, TrainTask
from privacy.discrete_gaussian import DiscreteGaussian
from privacy.events import DistributedDpSgdEvent
from privacy.random_source import RandomStream
from privacy.secure_aggregation.context import MIN_COHORT, least_survivors, max_colluding
from privacy.secure_aggregation.fixed_point import MODULUS_BITS, FixedPoint, fitting_bits

# Rounding adds at most this share to the sensitivity, and so to the noise.
MAX_ROUNDING_SHARE: Final = Fraction(1, 64)
# What is taken from the variance, in squared steps: randomised rounding of this deviation makes a
# discrete Gaussian of a continuous one, but for less than 2**-118.
SMOOTHING_VARIANCE: Final = Fraction(33, 16) ** 2
_ROUNDING_DISTANCE: Final = 2.0**-118
# Of a site's draws from the discrete Gaussian, which DiscreteGaussian keeps.
_DRAW_DISTANCE: Final = 2.0**-110

Ring = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class DistributedGrid:
    """The integers of one attempt: the same at each site and at the coordinator.

    Guarantees:
        Let a site's sums of neighbouring data sets be at most ``max_grad_norm`` apart (L2, over
        all coordinates together), let every site encode by ``encode_sum`` and ``add_noise`` with
        one ``cohort``, and let the sum be opened only over as many sites as ``least_survivors``
        says for that cohort and ``min_cohort``. Then what ``colluding_sites`` of them and the
        coordinator see of it is within ``distance`` (total variation) of a function of a Gaussian
        mechanism whose deviation is ``noise_multiplier`` times the sensitivity. No sum of the
        sites leaves 32 bits. All is a function of the fields.

    Raises:
        CohortTooSmallError: So few sites cannot bear so many that collude.
        ModulusCapacityError: So many sites, or so large batches, leave no grid that is fine
            enough: rounding would add more than ``MAX_ROUNDING_SHARE`` to the noise.
        PrivacyError: A constant is out of its range.

    Source: Kairouz, Liu and Steinke 2021, "The distributed discrete Gaussian mechanism for
    federated learning with secure aggregation"; for what replaces their concentrated DP, ADR 7.
    """

    noise_multiplier: float
    max_grad_norm: float
    max_batch_size: int
    """Of one site."""
    dimension: int
    members: int
    """Sites that are asked: the cohort is these, or some of them."""
    min_cohort: int
    """The floor of the terms, never a site's own: all sites must count the same survivors."""
    colluding_sites: int

    def __post_init__(self) -> None:
        positive = (self.noise_multiplier, self.max_grad_norm)
        if not all(0 < value < math.inf for value in positive):
            raise PrivacyError(
                f"expected a finite positive noise multiplier and clip, got {positive}"
            )
        if min(self.max_batch_size, self.dimension) < 1 or self.colluding_sites < 0:
            raise PrivacyError(
                "expected a batch and a dimension of 1 or more and no fewer than 0 colluding "
                f"sites, got {self.max_batch_size}, {self.dimension} and {self.colluding_sites}"
            )
        self.honest(self.members)
        _ = self._exponent  # or ModulusCapacityError

    def honest(self, cohort: int) -> int:
        """The sites of ``cohort`` (U1) whose noise is counted on: least survivors less colluders.

        Raises:
            CohortTooSmallError: The cohort cannot bear so many that collude, or is none.
        """
        if not self._bears(cohort):
            raise CohortTooSmallError(
                f"expected at least {max(self.min_cohort, MIN_COHORT)} of {self.members} sites, "
                f"enough to bear {self.colluding_sites} that collude, got {cohort}",
                hint="lower secure_aggregation.colluding_sites, or raise "
                "secure_aggregation.min_cohort",
            )
        return least_survivors(cohort, self.min_cohort) - self.colluding_sites

    def _bears(self, cohort: int) -> bool:
        return (
            max(self.min_cohort, MIN_COHORT) <= cohort <= self.members
            and self.colluding_sites <= max_colluding(cohort)
            and self.colluding_sites < least_survivors(cohort, self.min_cohort)
        )

    @property
    def step(self) -> float:
        """The grid, in the units of the sums: a power of two."""
        return 2.0**self._exponent

    @cached_property
    def bits(self) -> int:
        """Of one coordinate of one site: as many as leave the sum within 32 bits."""
        return fitting_bits(self.members, MODULUS_BITS)

    @property
    def sensitivity_steps(self) -> Fraction:
        """What neighbouring sums may be apart once rounded, in steps."""
        return self._sensitivity(self._exponent)

    def share(self, cohort: int) -> DiscreteGaussian:
        """The noise of one site, when ``cohort`` sites exchanged their keys.

        Raises:
            CohortTooSmallError: See ``honest``.
            PrivacyError: The sampler does not keep what ``distance`` says.
        """
        noise = DiscreteGaussian(self._variance(self._exponent, self.honest(cohort)))
        if noise.distance > _DRAW_DISTANCE or noise.reach > self._widest_reach(self._exponent):
            raise PrivacyError(
                f"expected draws within {_DRAW_DISTANCE:g} of a discrete Gaussian, and none "
                f"beyond the grid, got {noise.distance:g}, and up to {noise.reach} steps"
            )
        return noise

    @cached_property
    def distance(self) -> float:
        """Total variation of one round's release from a function of a Gaussian mechanism.

        For each coordinate: the draws, their sum as one discrete Gaussian, and that as a
        randomised rounding of the continuous one; at the cohort where it is largest.
        """
        honest = max(self.honest(cohort) for cohort in self._cohorts)
        deviation = math.sqrt(self._variance(self._exponent, honest))
        each = honest * _DRAW_DISTANCE + sum_distance(deviation, honest) + _ROUNDING_DISTANCE
        return min(1.0, self.dimension * each)

    def encode_sum(self, sums: Mapping[str, npt.NDArray[np.float32]], out: Ring) -> None:
        """Writes the clipped sums in steps into ``out``, half to even, by sorted name.

        Args:
            sums: fp32, by name, of ``dimension`` values together.
            out: (dimension,) uint32; two's complement. Holds zeros when this raises.

        Raises:
            ValueRangeError: A value is larger than clipping allows, NaN or infinite.
            SecureAggregationError: Types or lengths do not fit.
        """
        FixedPoint(self.step, self.bits).encode(sums, None, 1.0, out)
        limit, steps = self._sum_limit(self._exponent), out.view(np.int32)
        if not -limit <= int(steps.min()) <= int(steps.max()) <= limit:
            out.fill(0)
            raise ValueRangeError(
                f"expected a clipped sum of at most {limit} steps in each coordinate, got more",
                hint="clipping bounds it: what was summed is not what was clipped",
            )

    def add_noise(self, values: Ring, stream: RandomStream, *, cohort: int) -> None:
        """Adds one site's share of the noise to ``values``, in place, modulo 2**32.

        Guarantees:
            What is added is a function of ``stream``'s key, the grid and ``cohort`` alone.

        Args:
            values: (dimension,) uint32, from ``encode_sum``.
            stream: Where the noise comes from; used once.
            cohort: Sites that exchanged their keys (U1), as the protocol has bound them.

        Raises:
            CohortTooSmallError: See ``honest``; nothing was added.
            PrivacyError: The vector does not fit; nothing was added.
        """
        if values.dtype != np.uint32 or values.shape != (self.dimension,):
            raise PrivacyError(f"expected {self.dimension} uint32, got {values.shape}")

        def add(start: int, noise: torch.Tensor) -> None:
            piece = values[start : start + len(noise)]
            np.add(piece, noise.to(torch.int32).numpy().view(np.uint32), out=piece)

        self.share(cohort).each_block(stream, self.dimension, add)

    @cached_property
    def _cohorts(self) -> list[int]:
        """Those that may come of the sites that are asked."""
        return [size for size in range(MIN_COHORT, self.members + 1) if self._bears(size)]

    @cached_property
    def _exponent(self) -> int:
        """The finest grid on which ``members`` sites' sums and noise stay within 32 bits."""
        room = FixedPoint(1.0, self.bits).limit
        first = _ceil_log2(Fraction(self.max_grad_norm) / 2**MODULUS_BITS)
        for exponent in range(first, first + MODULUS_BITS):
            if self._sum_limit(exponent) + self._widest_reach(exponent) <= room:
                break
        clip_steps = Fraction(self.max_grad_norm) / Fraction(2) ** exponent
        if self._root > MAX_ROUNDING_SHARE * clip_steps:
            raise ModulusCapacityError(
                "expected a grid whose rounding adds at most "
                f"1/{MAX_ROUNDING_SHARE.denominator} to the noise, got "
                f"{float(self._root / clip_steps):.3g} with {self.members} sites, batches of up "
                f"to {self.max_batch_size} each and {self.dimension} trained parameters",
                hint="ask fewer sites, lower train.global_batch_size, or train fewer parameters "
                "(train.lora, train.freeze)",
            )
        return exponent

    @property
    def _root(self) -> int:
        """Of the dimension, rounded up: what rounding two sums may move them apart."""
        return math.isqrt(self.dimension - 1) + 1

    def _sensitivity(self, exponent: int) -> Fraction:
        return Fraction(self.max_grad_norm) / Fraction(2) ** exponent + self._root

    def _variance(self, exponent: int, honest: int) -> Fraction:
        deviation = Fraction(self.noise_multiplier) * self._sensitivity(exponent)
        return (deviation**2 + SMOOTHING_VARIANCE) / honest

    def _sum_limit(self, exponent: int) -> int:
        clip = Fraction(self.max_grad_norm) / Fraction(2) ** exponent
        return math.ceil(self.max_batch_size * clip) + 1

    def _widest_reach(self, exponent: int) -> int:
        """No share of any cohort is wider: the sampler's reach is below 14 deviations and 32."""
        fewest = min(self.honest(cohort) for cohort in self._cohorts)
        variance = math.ceil(self._variance(exponent, fewest))
        return 14 * (math.isqrt(variance) + 1) + 32


def sum_distance(deviation: float, count: int) -> float:
    """Total variation of a sum of discrete Gaussians from one of ``count`` times the variance.

    With variances a and b and 1/t**2 = 1/a + 1/b, the sum's probabilities are the one's times a
    factor within 1 +- e, e = 2 sum over j of exp(-2 (pi j t)**2), over a constant within the
    same; so they are within 2 e / (1 - e) of it, relative. Adding one after another, the k-th
    has t**2 = deviation**2 k / (k + 1).

    Args:
        deviation: Of one of them, 1 or more.
        count: How many.

    Source: Kairouz, Liu and Steinke 2021, theorem 9 (there as a divergence); Poisson summation.
    """
    if deviation < 1:
        return 1.0
    squared = 2.0 * (math.pi * deviation) ** 2
    return min(1.0, sum(5.0 * math.exp(-squared * k / (k + 1)) for k in range(1, count)))


def grid_of_order(order: TrainTask) -> DistributedGrid:
    """The grid of an order: of its public constants and of how many sites it asks.

    Raises:
        PrivacyError: The order is not one for noise of several sites, or see ``DistributedGrid``.
    """
    constants = distributed_constants(order)
    section, aggregation = order.terms.secure_aggregation, order.aggregation
    if section is None or aggregation is None:
        raise PrivacyError(
            "expected secure aggregation in mode distributed, got an order without it",
            hint="one site's share of the noise protects nobody",
        )
    return DistributedGrid(
        noise_multiplier=constants.noise_multiplier,
        max_grad_norm=order.terms.privacy.max_grad_norm,
        max_batch_size=constants.max_batch_size,
        dimension=aggregation.dimension,
        members=len(aggregation.members),
        min_cohort=section.min_cohort,
        colluding_sites=section.colluding_sites,
    )


def distributed_constants(order: TrainTask) -> DpSgdTerms:
    """The public constants of an order in mode distributed.

    Raises:
        PrivacyError: It has none, or is of another mode.
    """
    if order.terms.privacy.mode != "distributed" or order.dp_sgd is None:
        raise PrivacyError("expected privacy constants in mode distributed, got none")
    return order.dp_sgd


def grid_of(order: TrainTask) -> tuple[float, int]:
    """Step and bits of the fixed point of an order; see ``grid_of_order``."""
    grid = grid_of_order(order)
    return grid.step, grid.bits


def distributed_event(order: TrainTask) -> DistributedDpSgdEvent:
    """What one round of an order costs; see ``grid_of_order`` for what it raises."""
    constants, grid = distributed_constants(order), grid_of_order(order)
    return DistributedDpSgdEvent(
        noise_multiplier=constants.noise_multiplier,
        sample_rate=constants.sample_rate,
        max_batch_size=constants.max_batch_size,
        max_examples=constants.max_examples,
        max_grad_norm=order.terms.privacy.max_grad_norm,
        colluding_sites=grid.colluding_sites,
        distance=grid.distance,
    )


def _ceil_log2(value: Fraction) -> int:
    """The smallest ``e`` with ``value`` <= 2**e."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if value <= Fraction(2) ** exponent else exponent + 1
