"""The private training of the run, watched from outside: what it samples and what it releases.

Nothing of it is copied here. ``train_privately`` runs as at a site; the indices are seen where it
asks for records, and a step's release where its optimizer takes it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from audit.subject import Subject
from core.data.records import Record
from core.model import ModelConfig
from core.parameters import trainable
from core.tasks.interface import Batch, Evaluation, Example, Task
from core.train import TrainConfig
from privacy.dp_sgd import DpSgdPlan, PrivateData, train_privately
from privacy.random_source import RandomSource

FloatArray = npt.NDArray[np.float64]

PROBE_WIDTH: Final = 512
_VOCABULARY: Final = 3
_LARGE: Final = 1_000_000


class Train(Protocol):
    """Trains a model privately, as ``privacy.dp_sgd.train_privately`` does."""

    def __call__(
        self,
        model: nn.Module,
        task: Task,
        data: PrivateData,
        *,
        plan: DpSgdPlan,
        config: TrainConfig,
        source: RandomSource,
        first_step: int,
        total_steps: int,
    ) -> int:
        """Returns the noised steps."""


@dataclass(frozen=True)
class Mechanism:
    """What is under test."""

    train: Train = train_privately
    source: Callable[[], RandomSource] = RandomSource.fresh
    """Where each round's keys come from."""


REAL: Final = Mechanism()


@dataclass(frozen=True)
class Step:
    """One step, as it can be seen."""

    batch: tuple[int, ...]
    """The records that were asked for."""
    sums: dict[str, Tensor]
    """The noised sum of each trained parameter: what is released times the public denominator."""

    def flat(self) -> FloatArray:
        """All of it as one vector."""
        parts = [one.detach().double().cpu().reshape(-1) for one in self.sums.values()]
        return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)


def watch(
    mechanism: Mechanism,
    model: nn.Module,
    task: Task,
    data: PrivateData,
    *,
    plan: DpSgdPlan,
    config: TrainConfig,
    on_step: Callable[[Step], None],
    source: RandomSource | None = None,
) -> int:
    """Trains ``model`` by the mechanism and shows each step as its optimizer takes it.

    Args:
        mechanism: What trains.
        model: Trained in place.
        task: Brings the loss.
        data: Records.
        plan: Public constants.
        config: Hyperparameters.
        on_step: Told each step before the weights change.
        source: ``None`` for a fresh one of the mechanism's.

    Returns:
        The steps that the mechanism says it took.
    """
    watched = _WatchedData(data)
    names = {id(parameter): name for name, parameter in trainable(model).items()}

    def before_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        own = [p for group in optimizer.param_groups for p in group["params"] if id(p) in names]
        if own:  # the hook sees every optimizer of the process
            sums = {names[id(p)]: p.grad * plan.expected_batch_size for p in own}
            on_step(Step(watched.taken(), sums))

    handle = register_optimizer_step_pre_hook(before_step)
    try:
        with _few_threads(sum(p.numel() for p in model.parameters())):
            return mechanism.train(
                model,
                task,
                watched,
                plan=plan,
                config=config,
                source=mechanism.source() if source is None else source,
                first_step=0,
                total_steps=plan.steps,
            )
    finally:
        handle.remove()


@contextlib.contextmanager
def _few_threads(size: int) -> Iterator[None]:
    """Small products gain nothing from threads, which on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if size < _LARGE else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def plans(subject: Subject) -> dict[str, DpSgdPlan]:
    """The constants of each site of a run of mode ``local``, equal ones once."""
    found: dict[DpSgdPlan, str] = {}
    for name, site in sorted(subject.sites.items()):
        plan = subject.plan(site)
        if plan is not None:
            found.setdefault(plan, name)
    return {name: plan for plan, name in found.items()}


def with_steps(plan: DpSgdPlan, steps: int) -> DpSgdPlan:
    """The same constants over another number of steps."""
    return replace(plan, steps=steps)


class _WatchedData:
    def __init__(self, data: PrivateData) -> None:
        self._data = data
        self._asked: list[int] = []

    def __len__(self) -> int:
        return len(self._data)

    def fetch(self, indices: Sequence[int]) -> Batch:
        self._asked.extend(int(index) for index in indices)
        return self._data.fetch(indices)

    def taken(self) -> tuple[int, ...]:
        asked, self._asked = self._asked, []
        return tuple(asked)


class MadeUpData:
    """Examples that belong to nobody, by index."""

    def __init__(self, task: Task, examples: Sequence[Example], device: torch.device) -> None:
        self._task, self._examples, self._device = task, examples, device

    def __len__(self) -> int:
        return len(self._examples)

    def fetch(self, indices: Sequence[int]) -> Batch:
        """The examples at ``indices``, padded."""
        return self._task.collate([self._examples[i] for i in indices]).to(self._device)


class Silenced:
    """A task whose every loss, and so every gradient, is 0: what is released is noise."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def encode(self, record: Record) -> Example:
        """As the task."""
        return self._task.encode(record)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """As the task."""
        return self._task.collate(examples)

    def build_model(self, config: ModelConfig) -> nn.Module:
        """As the task."""
        return self._task.build_model(config)

    def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
        """Zeros that the weights took part in."""
        return self._task.loss_per_example(logits, batch) * 0.0

    def evaluation(self) -> Evaluation:
        """As the task."""
        return self._task.evaluation()


class Probe(nn.Module):
    """A model so small that hundreds of batches of the run's size pass through it in a second."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(_VOCABULARY, width)
        self.head = nn.Linear(width, 2)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, 2) of the masked mean."""
        mask = attention_mask.unsqueeze(-1)
        logits: Tensor = self.head((self.embed(tokens) * mask).sum(1) / mask.sum(1))
        return logits


class ProbeTask:
    """Two classes; for ``Probe``."""

    def encode(self, record: Record) -> Example:
        """A token that no record changes."""
        return Example(tokens=(1,), label=0)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pads with 0."""
        length = max(len(one.tokens) for one in examples)
        rows = [[*one.tokens, *[0] * (length - len(one.tokens))] for one in examples]
        sizes = torch.tensor([len(one.tokens) for one in examples])
        labels = torch.tensor([one.label or 0 for one in examples])
        return Batch(torch.tensor(rows), torch.arange(length) < sizes[:, None], labels)

    def build_model(self, config: ModelConfig) -> nn.Module:
        """The probe."""
        return Probe(PROBE_WIDTH)

    def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(logits, batch.labels, reduction="none")

    def evaluation(self) -> Evaluation:
        """None: it is never evaluated."""
        raise NotImplementedError


def probe_data(count: int) -> MadeUpData:
    """``count`` examples for the probe."""
    return MadeUpData(ProbeTask(), [Example(tokens=(1,), label=0)] * count, torch.device("cpu"))


def probe_config(config: TrainConfig, plan: DpSgdPlan) -> TrainConfig:
    """The run's, in fp32 and with each batch in one piece."""
    return replace(
        config, autocast="off", micro_batch_size=plan.max_batch_size, freeze=(), lora=None
    )
