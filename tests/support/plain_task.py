"""The simplest task that encodes and collates: a token is a character."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.data.records import Record
from core.model import ModelConfig
from core.tasks.interface import Batch, Evaluation, Example


class CharacterTask:
    """Counts how often it encodes; has no model."""

    def __init__(self) -> None:
        self.num_encoded = 0

    def encode(self, record: Record) -> Example:
        """A token for each character."""
        self.num_encoded += 1
        return Example([ord(character) for character in record.text])

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pads with 0."""
        length = max(len(example.tokens) for example in examples)
        rows = [[*example.tokens, *[0] * (length - len(example.tokens))] for example in examples]
        tokens = torch.tensor(rows)
        return Batch(tokens, tokens != 0, torch.zeros(len(rows)))

    def build_model(self, config: ModelConfig) -> nn.Module:
        """There is none."""
        raise NotImplementedError

    def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
        """There is none."""
        raise NotImplementedError

    def evaluation(self) -> Evaluation:
        """There is none."""
        raise NotImplementedError
