"""The discrete Gaussian over the integers, of any deviation, at hundreds of millions a second.

A wide Gaussian is a sum of narrow ones on nested grids: X = D1 + B D2 + B**2 D3. Where D1 is wider
than twice B, no trace of the coarser grid is left. Each D is one lookup in a table.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from core.errors import PrivacyError
from privacy.discrete_gaussian_tables import (
    MAX_TABLE_VARIANCE,
    TABLE_DISTANCE,
    Outcomes,
    Table,
    gaussian_table,
)
from privacy.random_source import RandomStream

# Deviation of a lower level over the base. From 2 on, what a coarser grid leaves is below 2**-110.
_SMOOTHING: Final = Fraction(33, 16)
_MAX_BASE: Final = 256  # 33/16 of it is still a narrow table
_MAX_VARIANCE: Final = Fraction(2**48) ** 2
# Values under one key. Threads hand the interpreter's lock over at each operation on a block:
# with blocks that fit in the second-level cache two threads are no faster than one.
_BLOCK: Final = 1 << 18

Consumer = Callable[[int, torch.Tensor], None]


class DiscreteGaussian:
    """Draws integers ``k`` with probability in proportion to ``exp(-k**2 / (2 variance))``.

    Guarantees:
        From ideal bits, a value is within ``distance`` (total variation, below 2**-110) of that
        distribution, and values are independent. What is drawn is a function of the stream
        alone: neither of the number of threads nor of the machine.

    Source: Peikert 2010, An efficient and parallel Gaussian sampler for lattices, theorem 3.1,
    and Micciancio and Walter 2017, Gaussian sampling over the integers, for the sum of levels.
    """

    def __init__(self, variance: Fraction) -> None:
        """Args: ``variance`` in squared grid steps, from 1 to 2**96.

        Raises:
            PrivacyError: It is out of that range.
        """
        if not 1 <= variance <= _MAX_VARIANCE:
            raise PrivacyError(
                "expected noise with a deviation from 1 to 2**48 grid steps, got one whose "
                f"square is {float(variance):g}"
            )
        self.variance = variance
        self.base, lower = _levels(variance)
        narrow, powers = (_SMOOTHING * self.base) ** 2, self.base**2
        upper = variance
        for _ in range(lower):
            upper = (upper - narrow) / powers
        self.tables: tuple[Table, ...] = (
            gaussian_table(upper),
            *[gaussian_table(narrow)] * lower,
        )
        """One for each level, coarsest first."""
        self.distance = _distance(upper, lower)
        """Of a value from the discrete Gaussian, total variation."""
        self.reach = 0
        """No value is further from 0."""
        for table in self.tables:
            self.reach = self.reach * self.base + table.reach

    @property
    def dtype(self) -> torch.dtype:
        """Of the values that ``each_block`` gives: the narrowest that holds them."""
        return torch.int32 if self.reach < 2**31 else torch.int64

    def sample(self, stream: RandomStream, count: int) -> torch.Tensor:
        """``count`` independent draws, (count,) int64."""
        drawn = torch.empty(count, dtype=torch.int64)

        def keep(start: int, values: torch.Tensor) -> None:
            drawn[start : start + len(values)] = values

        self.each_block(stream, count, keep)
        return drawn

    def each_block(self, stream: RandomStream, count: int, consume: Consumer) -> None:
        """Calls ``consume(start, values)`` for the blocks of ``count`` draws, in any order.

        Args:
            stream: Gives the key of each block; nothing else of it is used.
            count: Values in all.
            consume: Gets the number of the first value and the values, of ``dtype``, which it
                may overwrite and must not keep. It is called from as many threads as torch uses.
        """
        starts = range(0, count, _BLOCK)
        keys = stream.branches(len(starts))
        threads = min(torch.get_num_threads(), len(starts))

        def work(first: int) -> None:
            buffers = _Buffers(min(_BLOCK, count), self.dtype)
            with torch.no_grad():
                for start, key in zip(starts[first::threads], keys[first::threads], strict=True):
                    if start + _BLOCK > count:  # the last block is shorter
                        buffers = _Buffers(count - start, self.dtype)
                    consume(start, self._block(RandomStream(key), buffers))

        if threads == 1:
            work(0)
        elif threads:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, range(threads)))

    def _block(self, stream: RandomStream, buffers: "_Buffers") -> torch.Tensor:
        """As many values as there is room for: level by level, coarsest first."""
        total = buffers.total
        np.copyto(total, buffers.look_up(self.tables[0], stream))
        for table in self.tables[1:]:
            np.multiply(total, self.base, out=total)
            np.add(total, buffers.look_up(table, stream), out=total)
        return torch.from_numpy(total)


class _Buffers:
    """The memory of one thread, used again for each block.

    numpy's operations run on the thread that calls them; torch's would start threads of their own
    under each of ours. ``index_select`` of one dimension does not, and takes narrow indices.
    """

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.total = np.empty(size, dtype=np.int32 if dtype == torch.int32 else np.int64)
        self._bytes = bytearray(2 * size)
        self._cells = np.frombuffer(self._bytes, dtype="<u2")
        self._unsure = np.zeros(size + -size % 8, dtype=np.bool_)
        self._index = torch.empty(size, dtype=torch.int32)
        self._drawn = torch.empty(size, dtype=torch.int32)

    def look_up(self, table: Table, stream: RandomStream) -> Outcomes:
        """A block of draws from ``table``."""
        stream.fill(self._bytes)
        drawn: Outcomes = self._drawn.numpy()
        np.copyto(self._index.numpy(), self._cells)
        torch.index_select(table.stages[0].outcomes, 0, self._index, out=self._drawn)
        np.greater_equal(self._cells, table.stages[0].sure, out=self._unsure[: len(drawn)])
        unsure = _positions(self._unsure)
        if unsure.size:
            drawn[unsure] = table.refine(stream, unsure.size)
        return drawn


def _positions(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Where few of many flags stand, a multiple of 8; by eights, in half of flatnonzero's time."""
    eights = np.flatnonzero(flags.view(np.uint64) != 0)
    among = np.flatnonzero(flags.reshape(-1, 8).take(eights, axis=0))
    found: npt.NDArray[np.int64] = eights[among >> 3] << 3 | among & 7
    return found


def _levels(variance: Fraction) -> tuple[int, int]:
    """The base, a power of two, and the number of levels below the coarsest."""
    if variance <= MAX_TABLE_VARIANCE:
        return 1, 0
    excess = math.log2(variance / MAX_TABLE_VARIANCE) / 2
    lower = 1
    while (base := 2 ** max(1, math.ceil(excess / lower))) > _MAX_BASE:
        lower += 1
    return base, lower


def _distance(top: Fraction, lower: int) -> float:
    """Of the tables, and of what each coarser grid leaves in the sum.

    With 1/t**2 = 1/narrow + 1/(B**2 upper), the mass on each coset of B is the same but for a
    factor within 1 +- 2 sum over j of exp(-2 (pi j t / B)**2). The narrowest upper level is the
    coarsest, and the others stand farther.
    """
    smooth = 1.0 / float(1 / _SMOOTHING**2 + 1 / top)
    return (lower + 1) * TABLE_DISTANCE + lower * 6.0 * math.exp(-2.0 * math.pi**2 * smooth)
