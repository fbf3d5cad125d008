"""Records and where they come from: the seam that every data source implements."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Record:
    """One record as its site holds it."""

    text: str
    label: str | None = None
    person: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)


class RecordSource(Protocol):
    """Random access to validated records; a source may be larger than memory."""

    def __len__(self) -> int:
        """Number of records. Private: it stays at the site."""

    def __getitem__(self, index: int) -> Record:
        """The record at ``index``, from 0."""


@dataclass(frozen=True)
class Subset:
    """Some records of a source, in the given order."""

    source: RecordSource
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.source[self.indices[index]]


def iterate(source: RecordSource) -> Iterator[Record]:
    """All records in order."""
    return (source[index] for index in range(len(source)))
