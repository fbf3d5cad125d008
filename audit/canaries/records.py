"""Canaries as records: they reach the training by the door that every record comes in by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from audit.subject import Subject
from core.data.records import Record, RecordSource
from core.model import ModelConfig
from core.tasks.interface import Batch, Evaluation, Example, Task


@dataclass(frozen=True, kw_only=True)
class CanaryRecord(Record):
    """A record that is no text: tokens that no record of the site has."""

    example: Example


class CanaryTask:
    """The run's task, which takes canaries for what they are; records it treats as ever."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def encode(self, record: Record) -> Example:
        """A canary's own tokens; of a record what the task makes of it."""
        if isinstance(record, CanaryRecord):
            return record.example
        return self._task.encode(record)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """As the task does."""
        return self._task.collate(examples)

    def build_model(self, config: ModelConfig) -> nn.Module:
        """As the task does."""
        return self._task.build_model(config)

    def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
        """As the task does."""
        return self._task.loss_per_example(logits, batch)

    def evaluation(self) -> Evaluation:
        """As the task does."""
        return self._task.evaluation()


@dataclass(frozen=True)
class Joined:
    """Records and canaries as one source."""

    records: RecordSource
    canaries: Sequence[Record]

    def __len__(self) -> int:
        return len(self.records) + len(self.canaries)

    def __getitem__(self, index: int) -> Record:
        count = len(self.records)
        return self.records[index] if index < count else self.canaries[index - count]


def with_canaries(subject: Subject) -> Subject:
    """The same subject, whose task knows canaries."""
    task = CanaryTask(subject.blueprint.task)
    return replace(subject, blueprint=replace(subject.blueprint, task=task))


@torch.no_grad()
def losses_of(
    model: nn.Module, subject: Subject, examples: Sequence[Example], *, batch_size: int = 256
) -> Tensor:
    """The task's loss of each example, (N,) in float64 on the CPU."""
    task, found = subject.blueprint.task, []
    model.eval()
    for start in range(0, len(examples), batch_size):
        batch = task.collate(examples[start : start + batch_size]).to(subject.device)
        logits = model(batch.tokens, batch.attention_mask)
        found.append(task.loss_per_example(logits.float(), batch).double().cpu())
    return torch.cat(found)
