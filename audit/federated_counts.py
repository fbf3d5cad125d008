"""Counts by group and histograms of losses, of each site: exact, or as the sites noised them.

All that an audit of live sites learns of their records. With each site's numbers stands the scale
of the noise in them, so that no interval forgets it; see ``audit.noised_sums``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import ValidationError

from audit.noised_sums import noise_variance
from audit.subject import AuditedSite, Subject
from audit.training import logits_of
from core.audit_messages import AUDIT_FILE, AuditReply, CountsDocument, CountsQuestion
from core.data.records import RecordSource, iterate
from core.digests import arrays_digest
from core.errors import SubjectError
from core.parameters import to_arrays
from core.record_counts import Attributes, CountShape, IntArray, Scored, count

_MAX_FILE_BYTES: Final = 256 << 20


@dataclass(frozen=True)
class SiteCounts:
    """What one site said. Noised counts may be negative."""

    site: str
    cells: IntArray
    """(2, values of each attribute..., labels, labels): 0 for members and 1 for held out; last the
    true label, then the predicted one. Without labels it has no cell."""
    histogram: IntArray
    """(2, bins): records by their loss."""
    scale: float | None
    """Of the discrete Laplace noise on every number; ``None`` where they are exact."""

    @property
    def noise_variance(self) -> float:
        """Of the noise on every number; 0 where they are exact."""
        return noise_variance(self.scale)


@dataclass(frozen=True)
class FederatedCounts:
    """What the sites said, all of one shape."""

    attributes: Attributes
    """By name, in the order of the axes, each with its values in the order of its axis."""
    labels: tuple[str, ...]
    """In the order of the last two axes; empty for a task without classes."""
    edges: tuple[float, ...]
    """Of the bins; what lies outside stands in the outer bins."""
    sites: tuple[SiteCounts, ...]
    """By name."""

    @property
    def noise_variance(self) -> float:
        """Of the noise on each number summed over all sites."""
        return sum(site.noise_variance for site in self.sites)

    @property
    def exact(self) -> bool:
        """Whether no number is noised."""
        return all(site.scale is None for site in self.sites)

    def terms(self, numbers: int = 1) -> dict[float, int]:
        """The noises in a sum of so many numbers of each site, for ``audit.noised_sums``."""
        found: dict[float, int] = {}
        for site in self.sites:
            if site.scale is not None:
                found[site.scale] = found.get(site.scale, 0) + numbers
        return found

    @property
    def cells(self) -> IntArray:
        """Summed over the sites."""
        summed: IntArray = np.sum([site.cells for site in self.sites], axis=0, dtype=np.int64)
        return summed

    @property
    def histogram(self) -> IntArray:
        """Summed over the sites."""
        summed: IntArray = np.sum([site.histogram for site in self.sites], axis=0, dtype=np.int64)
        return summed


def from_replies(question: CountsQuestion, replies: Mapping[str, AuditReply]) -> FederatedCounts:
    """What sites replied to an order, checked to be of its shape.

    Raises:
        SubjectError: There is no reply, or one does not fit.
    """
    if not replies:
        raise SubjectError("expected the counts of a site or more, got none")
    shape = question.shape
    return FederatedCounts(
        attributes=shape.attributes,
        labels=shape.labels,
        edges=shape.edges,
        sites=tuple(_site_counts(shape, question, replies[name]) for name in sorted(replies)),
    )


def read_document(path: Path) -> CountsDocument:
    """Reads what a coordinator gathered.

    Raises:
        SubjectError: It cannot be read, or is not such a document.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise SubjectError(f"expected counts of at most {_MAX_FILE_BYTES} bytes in {path}")
        document = CountsDocument.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SubjectError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise SubjectError(
            f"expected the counts of an audit in {path}, got something else: {where}: "
            f"{first['msg']}",
            hint="ask the sites again: cloister coordinator counts --again",
        ) from error
    names = [reply.site for reply in document.replies]
    if len(set(names)) != len(names):
        raise SubjectError(f"expected one reply of each site in {path}, got several")
    return document


def read_counts(path: Path) -> FederatedCounts:
    """Reads the counts that a coordinator gathered; see ``counts_for`` for those of a run.

    Raises:
        SubjectError: It cannot be read, is not such a document, or holds no reply.
    """
    document = read_document(path)
    return from_replies(document.question, {reply.site: reply for reply in document.replies})


def counts_for(subject: Subject) -> FederatedCounts | None:
    """The counts in the run's folder; ``None`` where nobody asked for any.

    **Guarantees**: They are of this run, of the model under audit, of the shape and the epsilon
    that the federation's file says, and of its sites; noised as much as that epsilon asks for, and
    exact only where the run promised no privacy.

    Deliberately not checked: that a site said so. Replies are not signed; whoever gathers counts
    is believed.

    Raises:
        SubjectError: They are not, or cannot be read.
    """
    path = subject.folder / AUDIT_FILE
    if not path.exists():
        return None
    document = read_document(path)
    question, config = document.question, subject.config
    weights = to_arrays(subject.blueprint.build())
    released = to_arrays(subject.model.model, all_parameters=True)
    digest = arrays_digest({name: released[name] for name in weights})
    for what, expected, got in (
        ("run", subject.run_id, question.run_id),
        ("model", digest, question.arrays_digest),
        ("terms", subject.record.header["task_digest"], document.task_digest),
        ("shape", shape_of(subject), question.shape),
        ("epsilon", config.audit.epsilon, question.epsilon),
    ):
        if expected != got:
            raise SubjectError(
                f"expected the counts of this run's {what} in {path}, got another's",
                hint="ask the sites: cloister coordinator counts, then export the run again",
            )
    strangers = {reply.site for reply in document.replies} - {site.name for site in config.sites}
    if strangers:
        raise SubjectError(f"expected counts of the run's sites in {path}, got others too")
    scale = question.shape.num_releases / question.epsilon if subject.private else None
    for reply in document.replies:
        if (reply.scale, reply.task_digest) != (scale, document.task_digest):
            raise SubjectError(
                f"expected {reply.site}'s counts in {path} under noise of scale {scale} for the "
                "run's terms, got others",
                hint="ask the sites again: cloister coordinator counts --again",
            )
    return from_replies(question, {reply.site: reply for reply in document.replies})


def counts_of(subject: Subject) -> FederatedCounts | str:
    """What the sites said, or exact counts of the records at hand; else why there are none."""
    if isinstance(subject.federated, FederatedCounts):
        return subject.federated
    if not subject.with_records:
        return (
            "No record is at hand, and the sites were not asked for counts: "
            "see `cloister coordinator counts`."
        )
    return local_counts(subject)


def local_counts(subject: Subject) -> FederatedCounts:
    """Exact counts of the records at hand, which stay here.

    Raises:
        SubjectError: No site's records are at hand.
    """
    if not subject.with_records:
        raise SubjectError("expected the records of a site at hand, got none")
    shape = shape_of(subject)
    counted = {name: count(_scored(subject, s), shape) for name, s in subject.with_records.items()}
    return FederatedCounts(
        attributes=shape.attributes,
        labels=shape.labels,
        edges=shape.edges,
        sites=tuple(
            SiteCounts(name, counted[name].cells, counted[name].histogram, None)
            for name in sorted(counted)
        ),
    )


def shape_of(subject: Subject) -> CountShape:
    """What is counted, from the federation's public file.

    Raises:
        AuditError: Its attributes make too large a table.
    """
    config = subject.config
    return CountShape.of(config.audit, config.task, subject.blueprint.config.vocab_size)


def _site_counts(shape: CountShape, question: CountsQuestion, reply: AuditReply) -> SiteCounts:
    bins = shape.histogram[0] * shape.histogram[1]
    sizes = (len(reply.cells), len(reply.histogram))
    about = (reply.run_id, reply.attempt, reply.arrays_digest)
    if sizes != (shape.num_cells, bins) or about != (
        question.run_id,
        question.attempt,
        question.arrays_digest,
    ):
        raise SubjectError(f"expected {reply.site}'s counts of what was asked, got others")
    return SiteCounts(
        site=reply.site,
        cells=np.array(reply.cells, dtype=np.int64).reshape(shape.cells),
        histogram=np.array(reply.histogram, dtype=np.int64).reshape(shape.histogram),
        scale=reply.scale,
    )


def _scored(subject: Subject, site: AuditedSite) -> Iterator[Scored]:
    yield from _scored_part(subject, site.members, held_out=False)
    yield from _scored_part(subject, site.held_out, held_out=True)


def _scored_part(subject: Subject, records: RecordSource, *, held_out: bool) -> Iterator[Scored]:
    """In batches: nothing leaves, so that no record's bits need be its own affair alone."""
    each = iterate(records)
    classes = bool(subject.config.task.labels)
    for logits, batch in logits_of(subject.model.model, subject, records):
        losses = subject.blueprint.task.loss_per_example(logits, batch).tolist()
        labels = batch.labels.tolist() if classes else [None] * len(losses)
        predicted = logits.argmax(dim=-1).tolist() if classes else [None] * len(losses)
        for loss, label, guess in zip(losses, labels, predicted, strict=True):
            yield Scored(held_out, next(each).groups, loss, label, guess)
