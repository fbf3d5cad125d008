"""Whether a language model reads a pack's sentences: else what it prefers means nothing.

A model on bytes can spell every word and know none. One that has not learned how words follow each
other hardly tells a sentence from the same words in another order; whichever of two sentences such
a model finds likelier, it is for their letters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from audit.intervals import clopper_pearson
from audit.score_checks import FloatArray
from audit.verdicts import Interval, Measure

MIN_READ: Final = 0.75
"""Share of sentences in order that must surely be likelier than in disorder; 1/2 is guessing."""
_SENTENCES: Final = 200
# The first and the last word stay: a capital or a full stop inside would give the disorder away.
_FEWEST_WORDS: Final = 6
_TRIES: Final = 8


@dataclass(frozen=True)
class Reading:
    """How many sentences a model finds likelier than their words in another order."""

    likelier: int
    sentences: int

    @property
    def interval(self) -> Interval:
        """Of the share. The whole range where there was no sentence to try."""
        if self.sentences == 0:
            return Interval(low=0.0, high=1.0, confidence=0.95, method="nothing to try")
        return clopper_pearson(self.likelier, self.sentences)

    @property
    def fluent(self) -> bool:
        """Whether the model surely reads."""
        return self.interval.low > MIN_READ

    def measure(self) -> Measure:
        """For the report."""
        return Measure(
            name="word-order",
            label="share of sentences that are likelier than the same words in another order",
            value=self.likelier / self.sentences if self.sentences else None,
            interval=self.interval,
            limit=MIN_READ,
        )


def reading_of(
    texts: Sequence[str],
    likelihoods: Callable[[Sequence[str]], FloatArray],
    rng: np.random.Generator,
) -> Reading:
    """Tries a model on some of the texts.

    Args:
        texts: Of which those of few words are left out.
        likelihoods: Log-likelihood of each text.
        rng: Chooses texts and their disorder.
    """
    distinct = list(dict.fromkeys(texts))
    chosen: list[str] = []
    mixed: list[str] = []
    for index in rng.permutation(len(distinct)):
        if len(chosen) == _SENTENCES:
            break
        other = disordered(distinct[int(index)], rng)
        if other is not None:
            chosen.append(distinct[int(index)])
            mixed.append(other)
    if not chosen:
        return Reading(0, 0)
    return Reading(int((likelihoods(chosen) > likelihoods(mixed)).sum()), len(chosen))


def disordered(text: str, rng: np.random.Generator) -> str | None:
    """The text with the words between its first and its last in another order.

    Returns:
        ``None`` where it has too few words, or as good as one word several times.
    """
    words = text.split()
    if len(words) < _FEWEST_WORDS:
        return None
    first, *inner, last = words
    for _ in range(_TRIES):
        order = rng.permutation(len(inner))
        moved = [inner[int(number)] for number in order]
        if moved != inner:
            return " ".join([first, *moved, last])
    return None
