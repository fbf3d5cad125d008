"""Tiny real models, tasks and data: small enough for an oracle that goes example by example."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from core.data.records import Record
from core.model import ModelConfig
from core.tasks.interface import Batch, Evaluation, Example
from core.train import TrainConfig

VOCAB = 17


class TinyModel(nn.Module):
    """Embedding, positions, norm, Linear and a head: each kind of layer that clipping supports."""

    def __init__(self, *, tied: bool = False, rms: bool = False, classes: int = 0) -> None:
        super().__init__()
        width = 6
        self.embed = nn.Embedding(VOCAB, width)
        self.positions = nn.Embedding(32, width)
        self.norm = nn.RMSNorm(width) if rms else nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.classes = classes
        self.head = nn.Linear(width, classes or VOCAB, bias=not tied)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, T, V), or (B, classes) of the masked mean."""
        where = torch.arange(tokens.shape[1]).repeat(len(tokens), 1)
        hidden = self.norm(self.embed(tokens) + self.positions(where))
        hidden = hidden + torch.tanh(self.mix(hidden))
        if not self.classes:
            logits: Tensor = self.head(hidden)
            return logits
        mask = attention_mask.unsqueeze(-1)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        scores: Tensor = self.head(pooled)
        return scores


class TinyTask:
    """Next-token prediction or classification, written as plainly as possible."""

    def encode(self, record: Record) -> Example:
        """Letters modulo the vocabulary."""
        return Example(tokens=[ord(c) % VOCAB for c in record.text], label=int(record.label or 0))

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pads with 0."""
        length = max(len(e.tokens) for e in examples)
        tokens = torch.tensor([[*e.tokens, *[0] * (length - len(e.tokens))] for e in examples])
        mask = torch.tensor(
            [[True] * len(e.tokens) + [False] * (length - len(e.tokens)) for e in examples]
        )
        return Batch(tokens, mask, torch.tensor([e.label or 0 for e in examples]))

    def build_model(self, config: ModelConfig) -> nn.Module:
        """The tiny model, whatever the configuration."""
        return TinyModel()

    def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean over an example's own tokens."""
        if logits.dim() == 2:
            return nn.functional.cross_entropy(logits, batch.labels, reduction="none")
        losses = nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), batch.tokens[:, 1:], reduction="none"
        )
        mask = batch.attention_mask[:, 1:]
        return (losses * mask).sum(1) / mask.sum(1).clamp(min=1)

    def evaluation(self) -> Evaluation:
        """Not needed where the tiny task is used."""
        raise NotImplementedError


@dataclass(frozen=True)
class TinyData:
    """Random token sequences of different lengths."""

    examples: tuple[Example, ...]

    @classmethod
    def make(cls, count: int, seed: int = 0, *, fixed_length: int = 0) -> "TinyData":
        """``count`` examples of 2 to 9 tokens, or of ``fixed_length``."""
        rng = np.random.default_rng(seed)
        return cls(
            tuple(
                Example(
                    tokens=rng.integers(0, VOCAB, fixed_length or rng.integers(2, 10)).tolist(),
                    label=int(rng.integers(0, 2)),
                )
                for _ in range(count)
            )
        )

    def __len__(self) -> int:
        return len(self.examples)

    def fetch(self, indices: Sequence[int]) -> Batch:
        """The examples at ``indices``."""
        return TinyTask().collate([self.examples[index] for index in indices])


def train_config(**changes: object) -> TrainConfig:
    """A configuration for a few small steps of plain SGD."""
    settings: dict[str, object] = {
        "steps_per_round": 4,
        "global_batch_size": 8,
        "micro_batch_size": 3,
        "learning_rate": 0.1,
        "optimizer": "sgd",
    }
    return TrainConfig(**{**settings, **changes})  # type: ignore[arg-type]
