"""What an audit counts at a site: tables and histograms in which each record stands at most once.

Their shapes follow from public constants alone. Computed at the site that holds the records, by
the same code whether the counts are then noised and sent or used where they are.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from core.config_sections import AuditSection, TaskSection
from core.data.held_out import Split
from core.data.records import Record, iterate
from core.errors import AuditError
from core.tasks.interface import Batch, Task

IntArray: TypeAlias = npt.NDArray[np.int64]
Attributes: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]

MAX_CELLS: Final = 16_384
"""Of one table: all of them travel in one message."""
# In units of what a guess among all outcomes costs: fine around it, where a private model's losses
# lie, and down to where an overfit model's do.
_EDGES: Final = (
    0.0,
    *(2.0**-power for power in range(8, 2, -1)),
    *(step / 16 for step in range(4, 21)),
    1.5,
    2.0,
    4.0,
)


@dataclass(frozen=True)
class CountShape:
    """What is counted: public, and agreed before any record is read."""

    attributes: Attributes
    """By name, each with all its values; none without labels."""
    labels: tuple[str, ...]
    """Empty for a task without classes, whose table has no cell."""
    edges: tuple[float, ...]
    """Of the histogram of losses, ascending; the outer bins take whatever lies beyond them."""

    @classmethod
    def of(cls, audit: AuditSection, task: TaskSection, vocab_size: int) -> "CountShape":
        """The shape that a federation's file stands for.

        Raises:
            AuditError: The table would have more than ``MAX_CELLS`` cells.
        """
        outcomes = len(task.labels) or vocab_size
        guess = math.log(max(outcomes, 2))
        edges = tuple(round(edge * guess, 9) for edge in _EDGES)
        # By name: of a table in a file, not every reader keeps the order.
        attributes = tuple(sorted(audit.attributes.items())) if task.labels else ()
        shape = cls(attributes, task.labels, edges)
        if shape.num_cells > MAX_CELLS:
            raise AuditError(
                f"expected attributes and labels of at most {MAX_CELLS} cells, "
                f"got {shape.num_cells}",
                hint="name fewer attributes, or fewer values of each, in audit.attributes",
            )
        return shape

    @property
    def cells(self) -> tuple[int, ...]:
        """Shape of the table: held out or not, each attribute's value, label, prediction."""
        groups = (len(values) for _, values in self.attributes)
        return (2, *groups, len(self.labels), len(self.labels))

    @property
    def histogram(self) -> tuple[int, int]:
        """Shape of the histogram: held out or not, bin."""
        return (2, len(self.edges) - 1)

    @property
    def num_cells(self) -> int:
        """Cells of the table."""
        return math.prod(self.cells)

    @property
    def num_releases(self) -> int:
        """Releases that a site pays for: the histogram and, where it has a cell, the table."""
        return 2 if self.num_cells else 1


@dataclass(frozen=True)
class RecordCounts:
    """Exact counts. They are private, and leave a site only noised."""

    cells: IntArray
    histogram: IntArray


@dataclass(frozen=True)
class Scored:
    """One record, as the model sees it."""

    held_out: bool
    groups: Mapping[str, str]
    loss: float
    label: int | None = None
    predicted: int | None = None


def count(scored: Iterable[Scored], shape: CountShape) -> RecordCounts:
    """Counts records.

    Guarantees:
        Adding or removing one record changes at most one cell of the table and exactly one bin of
        the histogram, each by one. A record whose group is missing or is not one of the public
        values stands in no cell, and nothing shows that it was there. A loss outside the edges,
        infinite or not a number stands in an outer bin.
    """
    cells = np.zeros(shape.cells, dtype=np.int64)
    histogram = np.zeros(shape.histogram, dtype=np.int64)
    values = [
        (name, {value: index for index, value in enumerate(known)})
        for name, known in shape.attributes
    ]
    inner = np.asarray(shape.edges[1:-1])
    for record in scored:
        side = int(record.held_out)
        # A loss that is not a number sorts behind all others.
        histogram[side, int(np.searchsorted(inner, record.loss, side="right"))] += 1
        place = [known.get(record.groups.get(name, "")) for name, known in values]
        where = [side, *place, record.label, record.predicted]
        if shape.labels and None not in where:
            cells[tuple(where)] += 1
    return RecordCounts(cells, histogram)


def score_records(
    model: nn.Module, task: Task, split: Split, device: torch.device
) -> Iterator[Scored]:
    """All records of a site, one by one, as ``model`` in evaluation mode sees them.

    Guarantees:
        What is said of a record is a function of it and the model alone: each goes through the
        model by itself. In a batch, the others decide on the padding and on the kernels, which may
        move the last bits of its loss, and with them the record to another bin.
    """
    for held_out, records in ((False, split.members), (True, split.held_out)):
        for record in iterate(records):
            yield _score(model, task, record, held_out, device)


@torch.no_grad()
def _score(
    model: nn.Module, task: Task, record: Record, held_out: bool, device: torch.device
) -> Scored:
    example = task.encode(record)
    batch: Batch = task.collate([example]).to(device)
    logits = model(batch.tokens, batch.attention_mask)
    loss = float(task.loss_per_example(logits, batch)[0])
    predicted = int(logits[0].argmax()) if example.label is not None else None
    return Scored(held_out, record.groups, loss, example.label, predicted)
