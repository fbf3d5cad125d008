"""Sequence classification: one label for each text."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.data.records import Record
from core.errors import ConfigError, DataError
from core.model import Classifier, ModelConfig
from core.tasks.interface import Batch, Evaluation, Example
from core.tasks.metrics import ClassEvaluation, wide
from core.tasks.text import TextInput
from core.tokenizer import Tokenizer


class Classification:
    """The task ``classification``."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_seq_len: int,
        labels: Sequence[str],
        pooling: Literal["first", "mean", "last"],
    ) -> None:
        self._input = TextInput(tokenizer, max_seq_len)
        self._numbers = {label: number for number, label in enumerate(labels)}
        self._pooling = pooling

    def encode(self, record: Record) -> Example:
        """The record's tokens and the number of its class.

        Raises:
            DataError: The record lacks a label, or has an unknown one.
        """
        if record.label is None:
            raise DataError(
                "expected a label, got a record without one",
                hint="name the column of the labels in data.columns.label",
            )
        number = self._numbers.get(record.label)
        if number is None:
            known = ", ".join(map(repr, self._numbers))
            raise DataError(
                f"expected a label among {known}, got {record.label!r}",
                hint="task.labels lists every label of the federation",
            )
        return Example(tokens=self._input.encode(record.text), label=number)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pads to the longest.

        Raises:
            DataError: An example has no label.
        """
        labels = [example.label for example in examples if example.label is not None]
        if len(labels) < len(examples):
            raise DataError("expected examples with labels, got one without")
        tokens, attention_mask = self._input.pad([example.tokens for example in examples])
        return Batch(tokens, attention_mask, torch.tensor(labels, dtype=torch.int64))

    def build_model(self, config: ModelConfig) -> nn.Module:
        """The Transformer with a classification head.

        Raises:
            ConfigError: The head would read a position that sees one token only, or the model
                has no room for the tokenizer's tokens.
        """
        if config.causal and self._pooling == "first":
            raise ConfigError(
                'expected task.pooling "mean" or "last" with a causal model, got "first"',
                hint="the first position of a causal model sees nothing but itself",
            )
        self._input.check_fits(config)
        return Classifier(config, len(self._numbers), self._pooling)

    def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
        """Losses (B,): the cross entropy of each example.

        Guarantees:
            The loss of example i is a function of the logits and label of example i alone.
        """
        return F.cross_entropy(wide(logits), batch.labels, reduction="none")

    def evaluation(self) -> Evaluation:
        """Gathers loss, accuracy, precision, recall, F1, ROC-AUC and the confusion matrix."""
        return ClassEvaluation(len(self._numbers))
