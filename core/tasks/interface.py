"""The seam between a task and everything else: examples, batches, model, loss and metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from core.data.records import Record
from core.model import ModelConfig

Metrics = Mapping[str, float | Sequence[Sequence[int]]]

# A label where nothing is to be predicted; the value that torch's cross entropy skips.
IGNORE: Final = -100


@dataclass(frozen=True)
class Example:
    """One record, tokenized for a task."""

    tokens: Sequence[int]
    label: int | None = None


@dataclass(frozen=True)
class Batch:
    """Padded examples; the first dimension of every tensor is the example."""

    tokens: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) bool, True where a token stands
    labels: Tensor  # (B,) or (B, T) int64; IGNORE where nothing is to be predicted

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``."""
        return Batch(self.tokens.to(device), self.attention_mask.to(device), self.labels.to(device))


class Evaluation(Protocol):
    """Gathers what metrics need, batch by batch."""

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Takes the model's output for a batch."""

    def metrics(self) -> Metrics:
        """The metrics over everything added."""


class Task(Protocol):
    """What a task must bring. New tasks implement this and touch nothing else."""

    def encode(self, record: Record) -> Example:
        """Tokenizes a record; cuts it to the model's length.

        Raises:
            DataError: The record lacks a label, or has an unknown one.
        """

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pads one or more examples to their longest."""

    def build_model(self, config: ModelConfig) -> nn.Module:
        """The Transformer with the task's head: ``model(tokens, attention_mask)`` gives logits."""

    def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
        """Losses (B,), each normalised by its own token count: no example sees another.

        Guarantees:
            The loss of example i is a function of the logits and labels of example i alone.
        """

    def evaluation(self) -> Evaluation:
        """An empty gathering of metrics."""
