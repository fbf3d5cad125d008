"""Models that the audit trains: by the very functions that trained the one under audit."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from audit.subject import AuditedSite, Subject
from core.data.dataset import TokenizedDataset
from core.data.records import RecordSource
from core.plain_training import train_plainly
from core.tasks.interface import Batch
from core.train import TrainConfig
from privacy.dp_sgd import DpSgdPlan, train_privately
from privacy.random_source import RandomSource

# Of one batch: 64 MiB in single precision, and a few times as much in what is computed from them.
_MOST_LOGITS: Final = 2**24


class DeviceData:
    """Records, tokenized, whose batches arrive where the model is."""

    def __init__(self, records: RecordSource, subject: Subject) -> None:
        self._data = TokenizedDataset(records, subject.blueprint.task)
        self._device = subject.device

    def __len__(self) -> int:
        return len(self._data)

    def fetch(self, indices: Sequence[int]) -> Batch:
        """The examples at ``indices``, padded."""
        return self._data.fetch(indices).to(self._device)


def train_model(
    subject: Subject,
    records: RecordSource,
    *,
    name: str,
    site: AuditedSite | None = None,
    rounds: int | None = None,
    train: TrainConfig | None = None,
    plan: DpSgdPlan | None = None,
    model: nn.Module | None = None,
    after_round: Callable[[int, nn.Module], None] = lambda number, model: None,
) -> nn.Module:
    """Trains a model on records as one site of the run trains: same constants, same functions.

    **Guarantees**: With ``site``, noise and sampling come from the operating system, as in any
    run; without, there is no noise and the batches follow from the audit's seed.

    Args:
        subject: Brings the model's shape and all constants.
        records: What to train on; for a private training at most what the site's terms cover.
        name: Names the seed of batches without privacy.
        site: Whose DP-SGD constants to train with; ``None`` to train without privacy.
        rounds: How many rounds; ``None`` for all of the run's.
        train: Hyperparameters instead of the run's; ``None`` for the run's.
        plan: DP-SGD constants instead of the site's; its steps are those of a round.
        model: The model to train, in place; ``None`` for a new one with the run's initial weights.
        after_round: Called after each round with its number, from 1, and the model.

    Returns:
        The trained model, in evaluation mode.

    Raises:
        CloisterError: Training cannot go on.
    """
    rounds = subject.config.federation.num_rounds if rounds is None else rounds
    train = subject.config.train if train is None else train
    model = subject.initial_model() if model is None else model
    data = DeviceData(records, subject)
    if plan is None and site is not None:
        plan = subject.plan(site, steps=train.steps_per_round)
    seed = subject.seed.generator(f"training/{name}").integers(0, 2**32, size=4)
    for number in range(rounds):
        first, total = number * train.steps_per_round, rounds * train.steps_per_round
        if plan is not None:
            train_privately(
                model,
                subject.blueprint.task,
                data,
                plan=plan,
                config=train,
                source=RandomSource.fresh(),
                first_step=first,
                total_steps=total,
            )
        else:
            train_plainly(
                model,
                subject.blueprint.task,
                data,
                config=train,
                seed=[int(word) for word in seed],
                first_step=first,
                total_steps=total,
            )
        after_round(number + 1, model)
    model.eval()
    return model


@torch.no_grad()
def logits_of(
    model: nn.Module, subject: Subject, records: RecordSource, *, batch_size: int = 64
) -> Iterator[tuple[torch.Tensor, Batch]]:
    """The model's output for all records, batch by batch, on the CPU.

    Only one batch is held at a time, and of a large vocabulary a small one.

    Yields:
        For each batch its logits, (B, K) or (B, T, V), and the batch itself.
    """
    data = DeviceData(records, subject)
    model.eval()
    if subject.config.task.kind == "causal-lm":
        shape = subject.blueprint.config
        batch_size = min(batch_size, max(1, _MOST_LOGITS // (shape.vocab_size * shape.max_seq_len)))
    for start in range(0, len(data), batch_size):
        batch = data.fetch(range(start, min(start + batch_size, len(data))))
        logits = model(batch.tokens, batch.attention_mask)
        yield logits.float().cpu(), batch.to(torch.device("cpu"))


def losses_of(model: nn.Module, subject: Subject, records: RecordSource) -> npt.NDArray[np.float64]:
    """Each record's loss, (N,)."""
    task = subject.blueprint.task
    parts = [
        task.loss_per_example(logits, batch).double().numpy()
        for logits, batch in logits_of(model, subject, records)
    ]
    return np.concatenate(parts) if parts else np.empty(0)
