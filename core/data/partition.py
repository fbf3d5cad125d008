"""Cuts one data source into sites, for simulation.

The seed is public: who goes where is known, and gives no privacy.
"""

import hashlib
import heapq
from array import array
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from core.data.records import Record, RecordSource, Subset, iterate
from core.errors import DataError

Indices = npt.NDArray[np.int64]


def partition(
    source: RecordSource,
    num_sites: int,
    scheme: Literal["iid", "dirichlet", "column"],
    *,
    alpha: float = 0.5,
    column: str | None = None,
    seed: int = 0,
) -> list[Subset]:
    """Gives every record to one site.

    - ``iid``: evenly, at random.
    - ``dirichlet``: of each label, every site gets a share drawn from a symmetric Dirichlet
      distribution; a person counts under the label of its first record. Every site first gets
      one person, so that none is empty.
    - ``column``: whole values of ``column`` go to one site each, so that the sites hold about as
      many records. This depends on no seed.

    Guarantees:
        Every record is in exactly one site, and no site is empty. Where the records name persons,
        ``iid`` and ``dirichlet`` keep all records of a person at one site: if a person were at
        several, what the sites release would add up for this person, and the largest epsilon of
        a site would not be the epsilon of the whole (parallel composition needs disjoint data).
        ``column`` keeps a person together only as far as the column does.

    Args:
        source: The records; every one is read once. Eight bytes are kept for each, and a few
            times that while the cut is made.
        num_sites: How many sites, at least 1.
        scheme: How.
        alpha: Dirichlet concentration, greater than 0; smaller is more skewed.
        column: One of the records' groups, or else ``label`` or ``person``.
        seed: Public.

    Raises:
        DataError: There are too few records, persons or values for the sites; or some records
            lack a person, a label or the column.

    Source:
        Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
        Visual Classification", 2019, for the Dirichlet shares.
    """
    if scheme == "column":
        return _subsets(source, _by_column(source, column or "", num_sites), num_sites)
    rng = np.random.default_rng(seed)
    units = _units(source, labelled=scheme == "dirichlet")
    _check_enough(len(units.sizes), num_sites, units.name)
    order = rng.permutation(len(units.sizes))
    if scheme == "iid":
        site_of_unit = _balanced(order, units.sizes, num_sites)
    else:
        site_of_unit = _dirichlet(units, order, num_sites, alpha, rng)
    return _subsets(source, site_of_unit[units.of_record], num_sites)


@dataclass(frozen=True)
class _Units:
    """What must not be torn apart: persons, or records where no person is named."""

    name: str
    of_record: Indices
    sizes: Indices  # records of each unit
    labels: Indices  # of each unit: of its first record


def _units(source: RecordSource, *, labelled: bool) -> _Units:
    persons, labels = array("q"), array("q")
    for record in iterate(source):
        if record.person is not None:
            persons.append(_code(record.person))
        labels.append(_code(_field(record, "label")) if labelled else 0)
    if len(persons) not in (0, len(source)):
        raise DataError(
            f"expected a person in every record or in none, got one in {len(persons)} of "
            f"{len(source)}"
        )
    codes = np.frombuffer(persons, dtype=np.int64) if persons else np.arange(len(source))
    _, first, of_record, sizes = np.unique(
        codes, return_index=True, return_inverse=True, return_counts=True
    )
    label_codes = np.frombuffer(labels, dtype=np.int64)[first]
    return _Units("persons" if persons else "records", of_record, sizes, label_codes)


def _balanced(order: Indices, sizes: Indices, num_sites: int) -> Indices:
    """Each unit in turn goes to the site that has the fewest records so far."""
    sites = np.empty(len(sizes), dtype=np.int64)
    loads = [(0, site) for site in range(num_sites)]
    for unit in order.tolist():
        load, site = heapq.heappop(loads)
        sites[unit] = site
        heapq.heappush(loads, (load + int(sizes[unit]), site))
    return sites


def _dirichlet(
    units: _Units, order: Indices, num_sites: int, alpha: float, rng: np.random.Generator
) -> Indices:
    sites = np.empty(len(units.sizes), dtype=np.int64)
    sites[order[:num_sites]] = np.arange(num_sites)
    rest = order[num_sites:]
    for label in np.unique(units.labels):
        members = rest[units.labels[rest] == label]
        ends = np.cumsum(rng.dirichlet(np.full(num_sites, alpha))) * units.sizes[members].sum()
        middles = np.cumsum(units.sizes[members]) - units.sizes[members] / 2
        sites[members] = np.searchsorted(ends[:-1], middles)
    return sites


def _by_column(source: RecordSource, column: str, num_sites: int) -> Indices:
    codes = np.fromiter(
        (_code(_field(record, column)) for record in iterate(source)), np.int64, len(source)
    )
    _, first, of_record, sizes = np.unique(
        codes, return_index=True, return_inverse=True, return_counts=True
    )
    _check_enough(len(sizes), num_sites, f"values of {column!r}")
    # The largest value first; of two alike, the one that occurs first.
    return _balanced(np.lexsort((first, -sizes)), sizes, num_sites)[of_record]


def _field(record: Record, column: str) -> str:
    value = record.groups.get(column)
    if value is None and column == "label":
        value = record.label
    if value is None and column == "person":
        value = record.person
    if value is None:
        raise DataError(
            f"expected {column!r} in every record to cut the data by, got a record without it",
            hint="name it under [data.columns]: as the label, as the person or among the groups",
        )
    return value


def _code(value: str) -> int:
    """Eight bytes for a string of any length. Two that collide stay together: no harm done."""
    digest = hashlib.blake2b(value.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _check_enough(found: int, num_sites: int, name: str) -> None:
    if num_sites < 1:
        raise DataError(f"expected one site or more, got {num_sites}")
    if found < num_sites:
        raise DataError(
            f"expected at least {num_sites} {name} for {num_sites} sites, got {found}",
            hint="simulate fewer sites",
        )


def _subsets(source: RecordSource, sites: Indices, num_sites: int) -> list[Subset]:
    order = np.argsort(sites, kind="stable")
    ends = np.cumsum(np.bincount(sites, minlength=num_sites))
    return [
        Subset(source, array("q", part.astype(np.int64).tobytes()))
        for part in np.split(order, ends[:-1])
    ]
