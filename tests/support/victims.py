"""Honest sites among liars, and what they gave out; the protocol's sizes, written down again."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from core.aggregation_messages import (
    Advert,
    Adverts,
    Confirmation,
    MaskedInput,
    Revealed,
    SealedShares,
)
from privacy.secure_aggregation import keys
from privacy.secure_aggregation.context import AttemptContext
from tests.support.aggregation import IDLE, NAMES, REVOKED, Ring

PLACES = {name: place for place, name in enumerate((IDLE, REVOKED, *NAMES), start=1)}


@cache
def digest_of(context: AttemptContext) -> bytes:
    """A context's digest; contexts are few and asked for often."""
    return context.digest()


def threshold(cohort: int) -> int:
    """Written down apart from the code under test."""
    return 2 * cohort // 3 + 1


def bearable(cohort: int) -> int:
    """How many colluding sites of a cohort the protocol is to withstand."""
    return min(2 * threshold(cohort) - cohort - 1, cohort - 2)


@dataclass
class Victim:
    """An honest site in one attempt, and all that it gave out."""

    name: str
    context: AttemptContext
    attempt: Any
    floor: int
    values: Ring
    advert: Advert | None = None
    adverts: Adverts | None = None
    """What it accepted as U1."""
    dealt: SealedShares | None = None
    sharers: tuple[str, ...] = ()
    masked_values: Ring | None = None
    masked: MaskedInput | None = None
    confirmations: list[Confirmation] = field(default_factory=list)
    revealed: list[Revealed] = field(default_factory=list)
    marked: list[Ring] = field(default_factory=list)
    """The values, at each time that they were marked as spent."""

    @property
    def cohort(self) -> list[str]:
        """U1, as it believes."""
        return [] if self.adverts is None else [advert.site for advert in self.adverts.adverts]

    @property
    def least(self) -> int:
        """The fewest sites of a sum with its values."""
        return max(threshold(len(self.cohort)), self.floor, self.context.min_cohort, 3)


@dataclass
class Cell:
    """Sites of one attempt that are told the same."""

    victims: list[Victim]
    adverts: Adverts | None = None
    pairs: dict[str, tuple[keys.KeyPair, keys.KeyPair]] = field(default_factory=dict)
    """The colluding sites' keys towards this cell: of shares, of masks."""
    sharers: tuple[str, ...] = ()
    survivors: tuple[str, ...] = ()
