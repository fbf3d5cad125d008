"""Rows of the token embedding that no text can reach: one for each canary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from audit.canaries.records import with_canaries
from audit.subject import Subject
from core.model import Classifier, LanguageModel
from core.tasks.interface import Example

_SCALE: Final = 0.02  # as every embedding of ours begins


@dataclass(frozen=True)
class Reserved:
    """A copy of the run's initial model with rows of its own for canaries."""

    subject: Subject
    """Whose task knows canaries."""
    model: nn.Module
    rows: Sequence[int]
    """The reserved token of each canary."""


def unsuited(subject: Subject) -> str | None:
    """Why canaries cannot live on rows of this run's embedding; ``None`` if they can."""
    model = subject.initial_model()
    if not isinstance(model, Classifier | LanguageModel):
        return f"Canaries need a model of ours with a token embedding, not {type(model).__name__}."
    if not model.transformer.token_embedding.weight.requires_grad:
        return (
            "The run does not train the token embedding, on whose rows these canaries live: "
            "with frozen weights or adapters this test has nothing to plant."
        )
    return None


def reserve(subject: Subject, count: int, *, purpose: str) -> Reserved:
    """The run's initial model with ``count`` tokens that no text has, as few of them new as can be.

    All other weights are the run's initial ones. ``unsuited`` must have said ``None``.

    Args:
        subject: Brings model, tokenizer and seed.
        count: How many tokens.
        purpose: Names the seed of the new rows.
    """
    model = subject.initial_model()
    first = subject.model.tokenizer.vocab_size
    seed = int(subject.seed.generator(f"canaries/{purpose}/rows").integers(0, 2**63))
    if isinstance(model, Classifier | LanguageModel):
        _enlarge(model, first + count, torch.Generator().manual_seed(seed))
    return Reserved(with_canaries(subject), model, range(first, first + count))


def _enlarge(model: Classifier | LanguageModel, size: int, generator: torch.Generator) -> None:
    """Gives a model rows for ``size`` tokens, where it has fewer; on both ends."""
    embedding = model.transformer.token_embedding
    missing = size - embedding.num_embeddings
    if missing <= 0:
        return
    old, width = embedding.weight, embedding.embedding_dim
    rows = torch.randn(missing, width, generator=generator) * _SCALE
    weight = torch.cat([old.detach(), rows.to(old)])
    embedding = nn.Embedding.from_pretrained(weight, freeze=False)  # type: ignore[no-untyped-call]
    model.transformer.token_embedding = embedding
    if not isinstance(model, LanguageModel):
        return
    if model.head.weight is old:  # tied
        model.head.weight = embedding.weight
    else:
        head = torch.randn(missing, width, generator=generator) * _SCALE
        trained = model.head.weight.requires_grad
        widened = torch.cat([model.head.weight.detach(), head.to(old)])
        model.head.weight = nn.Parameter(widened, requires_grad=trained)
    model.head.out_features = len(weight)


def canary_examples(reserved: Reserved, *, length: int, labels: Sequence[int]) -> list[Example]:
    """One canary for each reserved token: that token ``length`` times."""
    longest = min(length, reserved.subject.blueprint.config.max_seq_len)
    return [
        Example(tokens=(row,) * longest, label=label)
        for row, label in zip(reserved.rows, labels, strict=True)
    ]
