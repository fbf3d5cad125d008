"""Evaluation of the global model on public data, at the coordinator."""

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from core.blueprint import Blueprint
from core.config import FederationConfig
from core.data.dataset import TokenizedDataset
from core.data.sources import open_source
from core.parameters import load_arrays
from core.run_record import Metrics
from core.tasks.interface import Task


@dataclass(frozen=True)
class HoldoutEvaluator:
    """Metrics of weights on a public holdout. Nothing here is private, so nothing is noised."""

    model: nn.Module
    task: Task
    holdout: TokenizedDataset
    max_examples: int
    batch_size: int

    @torch.no_grad()
    def __call__(self, arrays: dict[str, npt.NDArray[Any]]) -> Metrics:
        """The task's metrics over the first ``max_examples`` records."""
        load_arrays(self.model, arrays)
        self.model.eval()
        device = next(self.model.parameters()).device
        evaluation = self.task.evaluation()
        count = min(len(self.holdout), self.max_examples)
        for start in range(0, count, self.batch_size):
            indices = range(start, min(start + self.batch_size, count))
            batch = self.holdout.fetch(indices).to(device)
            evaluation.add(self.model(batch.tokens, batch.attention_mask).float(), batch)
        return evaluation.metrics()


def open_evaluator(
    config: FederationConfig, blueprint: Blueprint, device: torch.device
) -> HoldoutEvaluator | None:
    """The evaluator that the federation's file names; ``None`` where it names no holdout.

    Raises:
        DataError: The holdout cannot be used.
    """
    section = config.evaluation
    if section.holdout is None:
        return None
    source = open_source(section.holdout, labels=config.task.labels)
    return HoldoutEvaluator(
        model=blueprint.build().to(device),
        task=blueprint.task,
        holdout=TokenizedDataset(source, blueprint.task),
        max_examples=section.max_examples,
        batch_size=section.batch_size,
    )
