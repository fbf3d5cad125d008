"""Counts by site, group, label and prediction: the one table that B1, B2 and B7 rest on.

Where the sites answered the audit these are their noised counts; where the records are at hand
they are counted here, exactly. All else works on the counts alone, so that both ways go through
the same statistics.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from audit.federated_counts import FederatedCounts, SiteCounts
from audit.subject import AuditedSite, Subject
from audit.training import logits_of
from core.data.records import Record, RecordSource, iterate
from core.errors import SubjectError
from core.record_counts import CountShape, IntArray, Scored, count

Side = Literal["held out", "all"]
BoolArray = npt.NDArray[np.bool_]

SEPARATOR: Final = " x "
"""Between the names of two attributes, and of two groups, of an intersection."""


@dataclass(frozen=True)
class Tally:
    """Counts of one way to group the records."""

    name: str
    """Of the attribute, or of several joined by ``SEPARATOR``."""
    groups: tuple[str, ...]
    cells: IntArray
    """(sites, groups, labels, labels): last the true label, then the predicted one."""
    merged: int
    """How many noised numbers were added up for each cell."""
    sites: tuple[str, ...]
    variances: tuple[float, ...]
    """Of the noise on one number of each site; 0 where it is exact."""
    scales: tuple[float | None, ...]
    """Of the discrete Laplace noise of each site."""

    @property
    def single(self) -> bool:
        """Whether it groups by one attribute."""
        return SEPARATOR not in self.name


def tallies_of(counts: FederatedCounts, side: Side) -> tuple[Tally, ...]:
    """One tally for each attribute and for each two of them."""
    names = [name for name, _ in counts.attributes]
    numbers = range(len(names))
    chosen = [(number,) for number in numbers] + list(combinations(numbers, 2))
    return tuple(_tally(counts, axes, side) for axes in chosen)


def tally_of_sites(counts: FederatedCounts, side: Side) -> Tally:
    """One tally without groups, for comparisons between sites."""
    return _tally(counts, (), side)


def _tally(counts: FederatedCounts, axes: tuple[int, ...], side: Side) -> Tally:
    stacked = np.stack([site.cells for site in counts.sites]).astype(np.int64)
    stacked = stacked[:, 1:] if side == "held out" else stacked
    dropped = tuple(2 + n for n in range(len(counts.attributes)) if n not in axes)
    cells = stacked.sum(axis=(1, *dropped))
    outcomes = len(counts.labels)
    kept = cells.reshape(len(counts.sites), -1, outcomes, outcomes)
    merged = stacked[0].size // max(kept[0].size, 1)
    values = [counts.attributes[axis][1] for axis in axes]
    groups = [""]
    for names in values:
        groups = [f"{g}{SEPARATOR}{n}" if g else n for g in groups for n in names]
    return Tally(
        name=SEPARATOR.join(counts.attributes[axis][0] for axis in axes),
        groups=tuple(groups),
        cells=kept,
        merged=merged,
        sites=tuple(site.site for site in counts.sites),
        variances=tuple(site.noise_variance for site in counts.sites),
        scales=tuple(site.scale for site in counts.sites),
    )


@dataclass(frozen=True)
class ScoredSite:
    """One site's records as the model sees them; they are at hand."""

    site: str
    probabilities: npt.NDArray[np.float64]
    """(N, labels)."""
    labels: IntArray
    losses: npt.NDArray[np.float64]
    held_out: BoolArray
    groups: tuple[dict[str, str], ...]

    @property
    def predicted(self) -> IntArray:
        """The likeliest label of each."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    def scored(self) -> Iterator[Scored]:
        """Record by record, to be counted."""
        rows = zip(
            self.held_out, self.groups, self.losses, self.labels, self.predicted, strict=True
        )
        for held_out, groups, loss, label, predicted in rows:
            yield Scored(bool(held_out), groups, float(loss), int(label), int(predicted))


def scored_sites(subject: Subject) -> tuple[ScoredSite, ...]:
    """All sites whose records are at hand, scored by the model under audit."""
    return tuple(_scored(subject, site) for site in subject.with_records.values())


def _scored(subject: Subject, site: AuditedSite) -> ScoredSite:
    held_out = [False] * len(site.members) + [True] * len(site.held_out)
    records = [*iterate(site.members), *iterate(site.held_out)]
    probabilities, labels = probabilities_of(subject, records)
    own = probabilities[np.arange(len(labels)), labels]
    return ScoredSite(
        site=site.name,
        probabilities=probabilities,
        labels=labels,
        losses=-np.log(np.maximum(own, np.finfo(np.float64).tiny)),
        held_out=np.asarray(held_out, dtype=np.bool_),
        groups=tuple(dict(record.groups) for record in records),
    )


def probabilities_of(
    subject: Subject, records: RecordSource, model: torch.nn.Module | None = None
) -> tuple[npt.NDArray[np.float64], IntArray]:
    """Probabilities (N, labels) and true labels (N,) of records, of a classification."""
    found = list(logits_of(subject.model.model if model is None else model, subject, records))
    if not found:
        return np.empty((0, len(subject.config.task.labels))), np.empty(0, dtype=np.int64)
    logits = torch.cat([logits for logits, _ in found]).double()
    labels = torch.cat([batch.labels for _, batch in found])
    return torch.softmax(logits, dim=1).numpy(), labels.numpy()


def counts_of_scored(subject: Subject, sites: tuple[ScoredSite, ...]) -> FederatedCounts:
    """Exact counts of scored records.

    Raises:
        SubjectError: No record names a value of some attribute.
    """
    shape = shape_of(subject)
    _check_groups(shape, [groups for site in sites for groups in site.groups])
    return _federated(shape, [(site.site, site.scored()) for site in sites])


def label_counts(subject: Subject) -> FederatedCounts:
    """Exact counts of labels and groups alone: no model looks, every prediction is the label.

    Raises:
        SubjectError: No record names a value of some attribute.
    """
    shape = shape_of(subject)
    numbers = {label: number for number, label in enumerate(shape.labels)}
    sites = subject.with_records.values()
    sides = [(s, held, r) for s in sites for held, r in ((False, s.members), (True, s.held_out))]
    _check_groups(shape, [record.groups for _, _, part in sides for record in iterate(part)])

    def scored(site: AuditedSite) -> Iterator[Scored]:
        for held_out, part in ((False, site.members), (True, site.held_out)):
            for record in iterate(part):
                number = numbers[_label(record, site)]
                yield Scored(held_out, record.groups, 0.0, number, number)

    return _federated(shape, [(site.name, scored(site)) for site in sites])


def shape_of(subject: Subject) -> CountShape:
    """What is counted, from the federation's public file."""
    config = subject.config
    return CountShape.of(config.audit, config.task, subject.blueprint.config.vocab_size)


def _label(record: Record, site: AuditedSite) -> str:
    if record.label is None:
        raise SubjectError(f"expected labels in the records of {site.name}, got one without")
    return record.label


def _check_groups(shape: CountShape, groups: Sequence[Mapping[str, str]]) -> None:
    for name, known in shape.attributes:
        if not any(each.get(name) in known for each in groups):
            raise SubjectError(
                f"expected records whose column {name!r} holds one of audit.attributes' values "
                f"({', '.join(known)}), got none",
                hint=f"name {name!r} in data.columns.groups of the sites' files",
            )


def _federated(shape: CountShape, sites: list[tuple[str, Iterator[Scored]]]) -> FederatedCounts:
    counted = [(name, count(scored, shape)) for name, scored in sites]
    return FederatedCounts(
        attributes=shape.attributes,
        labels=shape.labels,
        edges=shape.edges,
        sites=tuple(SiteCounts(name, c.cells, c.histogram, None) for name, c in counted),
    )
