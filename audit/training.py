"""Models that the audit trains: by the very functions that trained the one under audit."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from audit.subject import AuditedSite, Subject
from core.data.dataset import TokenizedDataset
from core.data.records import RecordSource
from core.plain_training import train_plainly
from core.tasks.interface import Batch
from privacy.dp_sgd import train_privately
from privacy.random_source import RandomSource


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
        model: The model to train, in place; ``None`` for a new one with the run's initial weights.
        after_round: Called after each round with its number, from 1, and the model.

    Returns:
        The trained model, in evaluation mode.

    Raises:
        CloisterError: Training cannot go on.
    """
    config = subject.config
    rounds = config.federation.num_rounds if rounds is None else rounds
    model = subject.initial_model() if model is None else model
    data = DeviceData(records, subject)
    steps = config.train.steps_per_round
    for number in range(rounds):
        first, total = number * steps, rounds * steps
        plan = None if site is None else subject.plan(site)
        if plan is not None:
            train_privately(
                model,
                subject.blueprint.task,
                data,
                plan=plan,
                config=config.train,
                source=RandomSource.fresh(),
                first_step=first,
                total_steps=total,
            )
        else:
            seed = subject.seed.generator(f"training/{name}").integers(0, 2**32, size=4)
            train_plainly(
                model,
                subject.blueprint.task,
                data,
                config=replace(config.train, max_update_norm=1.0),
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
) -> list[tuple[torch.Tensor, Batch]]:
    """The model's output for all records, batch by batch, on the CPU.

    Returns:
        For each batch its logits, (B, K) or (B, T, V), and the batch itself.
    """
    data = DeviceData(records, subject)
    model.eval()
    found = []
    for start in range(0, len(data), batch_size):
        batch = data.fetch(range(start, min(start + batch_size, len(data))))
        logits = model(batch.tokens, batch.attention_mask)
        found.append((logits.float().cpu(), batch.to(torch.device("cpu"))))
    return found
