"""Values as integers of few bits, whose sums are exact in 32 bits.

A value is rounded to the nearest multiple of the step, half to even. Nothing is clipped: what does
not fit is refused, for a clipped update would be another one than the site's people approved.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from core.errors import ModulusCapacityError, SecureAggregationError, ValueRangeError

MODULUS_BITS: Final = 32
MIN_BITS: Final = 8
BLOCK: Final = 1 << 15
"""Values that are worked on at once: 256 KiB of float64, which stay in the cache."""

Fp32 = npt.NDArray[np.float32]
Ring = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class FixedPoint:
    """The grid of one attempt: multiples of ``step`` from ``-limit`` to ``limit`` of them."""

    step: float
    bits: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.step) and self.step > 0.0):
            raise ModulusCapacityError(f"expected a step above 0, got {self.step}")
        _limit(self.bits)

    @property
    def limit(self) -> int:
        """The largest integer of one site."""
        return _limit(self.bits)

    def encode(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        reference: Mapping[str, npt.NDArray[Any]] | None,
        factor: float,
        out: Ring,
    ) -> None:
        """Writes ``rint(factor / step * (arrays - reference))`` into ``out``.

        Guarantees:
            Each integer is the one of float64 arithmetic, half to even, as its two's complement.
            When this raises, nothing of the update is in ``out``. Keeps one block of values,
            whatever the size.

        Args:
            arrays: fp32, by name; flattened in C order, by sorted name.
            reference: What is subtracted: the same names and shapes; ``None`` for nothing.
            factor: The site's weight, times what shortens its update; in float64, so that an
                update of norm C scaled to C does not leave the range by rounding.
            out: As long as all arrays together; it may be the very memory of ``arrays``, where
                that is one vector in their order.

        Raises:
            ValueRangeError: A value is out of range, NaN or infinite.
            SecureAggregationError: Names, shapes, types or the length do not fit.
        """
        _check_fit(arrays, reference, out)
        try:
            # The one test of each block finds what these warn of.
            with np.errstate(invalid="ignore", over="ignore"):
                self._encode(arrays, reference, factor / self.step, out)
        except BaseException:
            out.fill(0)
            raise

    def _encode(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        reference: Mapping[str, npt.NDArray[Any]] | None,
        scale: float,
        out: Ring,
    ) -> None:
        signed, start = out.view(np.int32), 0
        scratch = np.empty(min(BLOCK, out.size), np.float64)
        for name in sorted(arrays):
            values = arrays[name].reshape(-1)
            before = None if reference is None else reference[name].reshape(-1)
            for part in _parts(values.size):
                block = scratch[: part.stop - part.start]
                if before is None:
                    np.multiply(values[part], scale, out=block, dtype=np.float64)
                else:
                    np.subtract(values[part], before[part], out=block, dtype=np.float64)
                    np.multiply(block, scale, out=block)
                np.rint(block, out=block)
                self._check_range(name, block)
                signed[start : start + block.size] = block
                start += block.size

    def _check_range(self, name: str, block: npt.NDArray[np.float64]) -> None:
        # NaN is the minimum of whatever holds it, and compares with nothing.
        if not (block.min() >= -self.limit and block.max() <= self.limit):
            raise ValueRangeError(
                f"expected values of at most {self.limit} steps in {name}, got larger ones, NaN "
                "or infinity",
                hint="an update is scaled down to the terms' max_update_norm before it is encoded",
            )

    def decode(self, total: npt.NDArray[Any], divisor: float = 1.0) -> Fp32:
        """The values of an opened sum.

        Guarantees:
            Each is ``total * step / divisor`` in float64, rounded once more to fp32.

        Args:
            total: int32, or uint32 in two's complement; one vector.
            divisor: What the sum is divided by, such as the sum of the sites' weights.

        Raises:
            SecureAggregationError: It is neither, or ``divisor`` is not above 0.
        """
        if total.dtype not in (np.int32, np.uint32) or not 0.0 < divisor < math.inf:
            raise SecureAggregationError(
                f"expected a sum of 32-bit integers and a divisor above 0, got {total.dtype} and "
                f"{divisor}"
            )
        signed, values = total.view(np.int32), np.empty(total.size, np.float32)
        for part in _parts(total.size):
            block = signed[part] * np.float64(self.step)
            values[part] = np.divide(block, divisor, out=block)
        return values


def check_capacity(cohort: int, bits: int) -> None:
    """Checks that no sum of so many sites leaves 32 bits.

    Raises:
        ModulusCapacityError: It can, and would decode as another number without a sign of it.
    """
    if not 1 <= cohort * _limit(bits) < 2 ** (MODULUS_BITS - 1):
        raise ModulusCapacityError(
            f"expected sums within {MODULUS_BITS} bits, got {cohort} sites of {bits} bits each",
            hint="lower secure_aggregation.bits, or ask fewer sites",
        )


def fitting_bits(cohort: int, wanted: int) -> int:
    """The bits of one site's values: those wanted, or as many as so many sites can have.

    Raises:
        ModulusCapacityError: They are fewer than 8.
    """
    for bits in range(wanted, MIN_BITS - 1, -1):
        if cohort * _limit(bits) < 2 ** (MODULUS_BITS - 1):
            return bits
    raise ModulusCapacityError(
        f"expected room for {MIN_BITS} bits of each site, got {cohort} sites and {wanted} bits"
    )


def _limit(bits: int) -> int:
    if not 2 <= bits <= MODULUS_BITS:
        raise ModulusCapacityError(f"expected 2 to {MODULUS_BITS} bits, got {bits}")
    return int(2 ** (bits - 1)) - 1


def _parts(size: int) -> Iterator[slice]:
    for start in range(0, size, BLOCK):
        yield slice(start, min(start + BLOCK, size))


def _check_fit(
    arrays: Mapping[str, npt.NDArray[Any]],
    reference: Mapping[str, npt.NDArray[Any]] | None,
    out: Ring,
) -> None:
    for name, array in arrays.items():
        others = (array,) if reference is None else (array, reference.get(name))
        for other in others:
            if other is None or other.dtype != np.float32 or other.shape != array.shape:
                raise SecureAggregationError(f"expected fp32 arrays of one shape for {name}")
    if reference is not None and arrays.keys() != reference.keys():
        raise SecureAggregationError("expected the names of the global weights, got others")
    size = sum(array.size for array in arrays.values())
    if out.dtype != np.uint32 or out.shape != (size,):
        raise SecureAggregationError(f"expected room for {size} uint32, got {out.shape}")
