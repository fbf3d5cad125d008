"""Counts under discrete Laplace noise, drawn exactly: no float decides anything.

What the ledger is debited for is ``LaplaceCountsEvent``. Not done here: the time that drawing
takes depends on what is drawn, as rejection sampling has it.
"""

from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from core.errors import PrivacyError
from privacy.events import LaplaceCountsEvent
from privacy.random_source import RandomStream

Counts = npt.NDArray[np.int64]

LARGEST: Final = 2**62
_WORDS_AT_ONCE: Final = 1024
_WORD_BITS: Final = 64


def counts_event(epsilon: float, num_releases: int) -> LaplaceCountsEvent:
    """One of ``num_releases`` releases that together cost ``epsilon``.

    Raises:
        PrivacyError: The scale would be out of range.
    """
    return LaplaceCountsEvent(scale=num_releases / epsilon)


def noised_counts(counts: Counts, event: LaplaceCountsEvent, stream: RandomStream) -> Counts:
    """The counts, each with independent noise X, P[X = x] proportional to exp(-|x| / scale).

    Guarantees:
        The distribution is exact: ``scale`` is taken as the fraction that its bits are, and every
        decision is one of integers over the keystream. Where adding or removing one record
        changes one of the counts by one, the release is (1 / scale)-differentially private.

    Args:
        counts: Any shape.
        event: What was debited.
        stream: A stream that nothing else was drawn from.

    Raises:
        PrivacyError: A count is so large that noise could overflow it.

    Source:
        Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020,
        algorithm 2.
    """
    if counts.size and max(abs(int(counts.min())), abs(int(counts.max()))) > LARGEST // 2:
        raise PrivacyError("expected counts far below 2**62, got others")
    laplace = DiscreteLaplace(Fraction(event.scale), stream)
    # A sum beyond 64 bits has no chance worth a name; clamping it is a function of the release.
    noised = [max(-LARGEST, min(LARGEST, int(n) + laplace.draw())) for n in counts.flat]
    return np.array(noised, dtype=np.int64).reshape(counts.shape)


class DiscreteLaplace:
    """Draws from P[X = x] proportional to exp(-|x| / scale), exactly.

    Args:
        scale: Above 0.
        stream: Where its bits come from.
    """

    def __init__(self, scale: Fraction, stream: RandomStream) -> None:
        if scale <= 0:
            raise PrivacyError(f"expected a scale above 0, got {scale}")
        self._top, self._bottom = scale.numerator, scale.denominator
        self._stream = stream
        self._words: list[int] = []

    def draw(self) -> int:
        """One value, independent of those before."""
        while True:
            magnitude = self._geometric() // self._bottom
            negative = self._below(2) == 1
            if magnitude or not negative:  # zero would else come twice as often
                return -magnitude if negative else magnitude

    def _geometric(self) -> int:
        """X >= 0, P[X = x] proportional to exp(-x / top)."""
        while True:
            rest = self._below(self._top)
            if self._bernoulli_exp(rest, self._top):
                break
        whole = 0
        while self._bernoulli_exp(1, 1):
            whole += 1
        return rest + self._top * whole

    def _bernoulli_exp(self, numerator: int, denominator: int) -> bool:
        """True with probability exp(-fraction), of a fraction in [0, 1]; algorithm 1."""
        tries = 1
        while self._below(denominator * tries) < numerator:
            tries += 1
        return tries % 2 == 1

    def _below(self, limit: int) -> int:
        """Uniform among 0, ..., limit - 1."""
        bits = (limit - 1).bit_length()
        if bits == 0:
            return 0
        while True:
            value, have = 0, 0
            while have < bits:
                value, have = value << _WORD_BITS | self._word(), have + _WORD_BITS
            value >>= have - bits
            if value < limit:
                return value

    def _word(self) -> int:
        if not self._words:
            self._words = self._stream.words(_WORDS_AT_ONCE).tolist()
        return self._words.pop()
