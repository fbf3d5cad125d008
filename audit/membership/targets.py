"""Whose membership is guessed: members and held-out records that could change places."""

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from audit.score_checks import FloatArray
from audit.subject import AuditedSite, Subject
from core.data.records import Record, RecordSource, Subset, iterate

BoolArray: TypeAlias = npt.NDArray[np.bool_]

MAX_PER_SIDE: Final = 10_000
"""Enough for a true positive rate at a false positive rate of 0.1 %."""
MIN_PER_SIDE: Final = 10
"""A site with fewer members or held-out records says nothing."""


@dataclass(frozen=True)
class Targets:
    """The records of one site whose membership is guessed: first members, then held-out ones."""

    site: str
    records: RecordSource = field(repr=False)
    member: BoolArray
    """For each record whether the site trained on it."""
    dropped: int
    """Records that were left out: repeated ones, and those beyond ``MAX_PER_SIDE``."""

    def __len__(self) -> int:
        return len(self.member)

    @property
    def texts(self) -> list[str]:
        """Their texts, in order."""
        return [record.text for record in iterate(self.records)]

    @property
    def zlib_bytes(self) -> FloatArray:
        """How long each text is after compression: how much it says, without any model."""
        lengths = [len(zlib.compress(text.encode())) for text in self.texts]
        return np.array(lengths, dtype=np.float64)


def targets_of(subject: Subject) -> dict[str, Targets]:
    """The targets of each site whose records are at hand and that held enough of them out.

    **Guarantees**: Which records are targets is a function of all of a site's records and not of
    the side that they are on: a unit (a person, or a text where no person is named) brings one
    record, and a text that several units have, at whichever site, brings none. So members and
    held-out records are exchangeable as long as the model knows neither.
    """
    sites = subject.with_records
    units = _units_by_text(sites)
    found = {}
    for name in sorted(sites):
        targets = _targets(subject, sites[name], units)
        counts = np.bincount(targets.member, minlength=2)
        if counts.min() >= MIN_PER_SIDE:
            found[name] = targets
    return found


def _targets(subject: Subject, site: AuditedSite, units: Mapping[str, set[str]]) -> Targets:
    split = site.split
    if split is None:
        raise TypeError("targets come from records at hand")
    generator = subject.seed.generator(f"membership/targets/{site.name}")
    sides: list[RecordSource] = []
    for side in (split.members, split.held_out):
        kept = _one_of_each(iterate(side), site.name, units)
        if len(kept) > MAX_PER_SIDE:
            kept = sorted(int(i) for i in generator.choice(kept, MAX_PER_SIDE, replace=False))
        sides.append(Subset(side, kept))
    counts = [len(side) for side in sides]
    return Targets(
        site=site.name,
        records=Joined(sides),
        member=np.repeat([True, False], counts),
        dropped=len(split.members) + len(split.held_out) - sum(counts),
    )


def _one_of_each(records: Iterable[Record], site: str, units: Mapping[str, set[str]]) -> list[int]:
    """The first record of each unit whose text is nobody else's; in the order of the source."""
    seen: set[str] = set()
    kept = []
    for index, record in enumerate(records):
        unit = _unit(record, site)
        if unit not in seen and len(units[_normal(record.text)]) == 1:
            seen.add(unit)
            kept.append(index)
    return kept


def _units_by_text(sites: Mapping[str, AuditedSite]) -> Mapping[str, set[str]]:
    units: dict[str, set[str]] = defaultdict(set)
    for site in sites.values():
        for side in (site.split.members, site.split.held_out) if site.split else ():
            for record in iterate(side):
                units[_normal(record.text)].add(_unit(record, site.name))
    return units


def _unit(record: Record, site: str) -> str:
    """What falls on one side as a whole; see ``core.data.held_out``."""
    return f"{site}\0text\0{record.text}" if record.person is None else f"{site}\0{record.person}"


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class Joined:
    """Several sources as one, in order."""

    parts: Sequence[RecordSource]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: int) -> Record:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError("beyond the last record")
