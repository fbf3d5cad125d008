"""What an attacker reads off a model for one record: a few numbers, whatever the task."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audit.score_checks import FloatArray
from audit.subject import Subject
from audit.training import logits_of
from core.data.records import RecordSource, Subset
from core.errors import ScoreError
from core.tasks.interface import IGNORE, Batch

MIN_K_SHARE: Final = 0.2
"""Of a text's tokens, the least likely ones. Shi et al. 2024 (arXiv:2310.16789)."""
_CHUNK: Final = 256
_SMALLEST_DEVIATION: Final = 1e-6


@dataclass(frozen=True)
class Observation:
    """One model's answers for some records, in their order; each array of shape (records,).

    Where a record has no token to predict its loss is 0: it says nothing of the model.
    """

    values: Mapping[str, FloatArray]
    """``loss``, ``confidence``, and by task ``entropy`` or ``total``, ``min-k``, ``min-k++``."""

    def __getitem__(self, name: str) -> FloatArray:
        return self.values[name]

    @property
    def loss(self) -> FloatArray:
        """The loss of each record."""
        return self.values["loss"]

    @property
    def confidence(self) -> FloatArray:
        """Log-odds of the true label; for a text its mean log-probability by token."""
        return self.values["confidence"]

    def at(self, keep: slice) -> "Observation":
        """Of some of the records."""
        return Observation({name: array[keep] for name, array in self.values.items()})


def observe(model: nn.Module, subject: Subject, records: RecordSource) -> Observation:
    """Asks a model about each record; never holds the logits of more than a chunk of them.

    Raises:
        ScoreError: A value is NaN or infinite: the model has diverged.
    """
    read = _read_text if subject.config.task.kind == "causal-lm" else _read_label
    parts = []
    for start in range(0, len(records), _CHUNK):
        chunk = Subset(records, range(start, min(start + _CHUNK, len(records))))
        parts += [read(logits, batch) for logits, batch in logits_of(model, subject, chunk)]
    return _joined(parts)


def _joined(parts: Iterable[Mapping[str, Tensor]]) -> Observation:
    parts = list(parts)
    values = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    if not all(np.isfinite(array).all() for array in values.values()):
        raise ScoreError(
            "expected finite scores of every record, got NaN or infinity",
            hint="the model has diverged: nothing can be said of what it learned",
        )
    return Observation(values)


def _read_label(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Of a classification, from logits (B, K)."""
    log_p = F.log_softmax(logits.double(), dim=-1)
    own = batch.labels[:, None]
    true = log_p.gather(1, own)[:, 0]
    others = log_p.scatter(1, own, -math.inf).logsumexp(dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1)
    return {"loss": -true, "confidence": true - others, "entropy": entropy}


def _read_text(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Of a language model, from logits (B, T, V)."""
    log_p = F.log_softmax(logits.double(), dim=-1)
    there = batch.labels != IGNORE  # (B, T)
    tokens = log_p.gather(2, batch.labels.clamp(min=0)[..., None])[..., 0]
    p = log_p.exp()
    mean = (p * log_p).sum(dim=-1)
    variance = (p * log_p.square()).sum(dim=-1) - mean.square()
    deviation = variance.clamp(min=0).sqrt().clamp(min=_SMALLEST_DEVIATION)
    total = (tokens * there).sum(dim=1)
    mean_log_p = total / there.sum(dim=1).clamp(min=1)
    return {
        "loss": -mean_log_p,
        "confidence": mean_log_p,
        "total": -total,
        "min-k": _mean_of_lowest(tokens, there),
        "min-k++": _mean_of_lowest((tokens - mean) / deviation, there),
    }


def _mean_of_lowest(values: Tensor, there: Tensor) -> Tensor:
    """Mean (B,) of each row's lowest share of ``there``; of one value where that is less.

    A text of fewer than 1 / share tokens would otherwise have the mean of nothing, NaN.
    """
    ordered = values.masked_fill(~there, math.inf).sort(dim=1).values
    count = torch.ceil(there.sum(dim=1) * MIN_K_SHARE).clamp(min=1)
    taken = torch.arange(values.shape[1]) < count[:, None]
    lowest = torch.where(taken & ordered.isfinite(), ordered, 0.0)
    return lowest.sum(dim=1) / count
