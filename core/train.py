"""Local training: configuration, schedule and the loop."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from core.errors import ConfigError, TrainingError
from core.lora import LoraConfig
from core.tasks.interface import Batch, Task

_AUTOCAST: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MAX_LOSS_SCALE: Final = 2**24  # beyond it, a loss of 1 is far above fp16's largest number


@dataclass(frozen=True)
class TrainConfig:
    """Hyperparameters of local training; public and the same at every site."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "strict": True,
        "extra": "forbid",
        "allow_inf_nan": False,
        "use_attribute_docstrings": True,
    }

    steps_per_round: int
    """Optimizer steps of a site in one round."""
    global_batch_size: int
    """Examples of a step; with DP-SGD the *expected* number, and the denominator."""
    learning_rate: float
    """Peak learning rate."""
    micro_batch_size: int = 32
    """Examples of one forward and backward pass; bounds memory, does not change the result."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """The local optimizer; its state starts anew in every round."""
    momentum: float = 0.0
    """SGD."""
    beta1: float = 0.9
    """AdamW."""
    beta2: float = 0.999
    """AdamW."""
    weight_decay: float = 0.0
    """Decoupled, on matrices only: biases, norms and embeddings do not decay."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over all steps of the run, after the warm-up."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from zero."""
    max_update_norm: float = 0.0
    """Clip of the whole gradient without privacy; 0 for none. With DP-SGD, each example's
    gradient is clipped instead."""
    autocast: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision; norms, sums and noise stay in fp32."""
    loss_scale: int = 1024
    """With ``fp16``: what losses are multiplied with before the backward pass, and gradients
    divided by after it; a power of two. It is public and never follows the data. An example whose
    gradient overflows adds nothing to a private step, and ends a step without privacy."""
    freeze: tuple[str, ...] = ()
    """Parameters whose names begin so are not trained and never travel."""
    lora: LoraConfig | None = None
    """Low-rank adapters on some Linear layers; all else is frozen and never travels."""

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of its range."""
        for name in ("steps_per_round", "global_batch_size", "micro_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected train.{name} of 1 or more, got {getattr(self, name)}")
        for name in (
            "learning_rate",
            "momentum",
            "weight_decay",
            "warmup_steps",
            "max_update_norm",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"expected train.{name} finite and not negative, got {getattr(self, name)}"
                )
        if not 1 <= self.loss_scale <= _MAX_LOSS_SCALE or self.loss_scale.bit_count() != 1:
            raise ConfigError(
                f"expected train.loss_scale as a power of two of at most {_MAX_LOSS_SCALE}, "
                f"got {self.loss_scale}",
                hint="dividing by a power of two rounds nothing",
            )
        if self.lora is not None and self.freeze:
            raise ConfigError(
                "expected train.freeze only without train.lora, which freezes all but its adapters"
            )
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"expected train.{name} in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True)
class Proximal:
    """FedProx's pull towards the weights that a round began with.

    It is a function of weights that are public within the federation, so it is added after the
    noise and costs no privacy. Source: Li et al. 2020, section 3.2.
    """

    mu: float
    anchor: Sequence[Tensor]

    @torch.no_grad()
    def add_to_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Adds ``mu * (p - anchor)`` to each gradient."""
        for parameter, anchor in zip(parameters, self.anchor, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - anchor, alpha=self.mu)


def proximal(mu: float, parameters: Sequence[nn.Parameter]) -> Proximal | None:
    """The pull towards the present weights; ``None`` where ``mu`` is 0."""
    return Proximal(mu, [p.detach().clone() for p in parameters]) if mu > 0 else None


class Stepper(Protocol):
    """How gradients of a batch become an update: plainly, or with differential privacy."""

    def micro_step(self, batch: Batch, *, last: bool) -> None:
        """Takes one micro-batch; after the last one of a step, updates the weights."""

    def empty_step(self) -> None:
        """A step whose batch has no example."""


Loss = Callable[[nn.Module, Batch], Tensor]


def make_loss(task: Task, *, autocast: str) -> Loss:
    """The task's loss of a model on a batch, (B,) in fp32, in mixed precision where asked."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        device = batch.tokens.device.type
        with torch.autocast(device, dtype=_AUTOCAST.get(autocast), enabled=autocast != "off"):
            logits = model(batch.tokens, batch.attention_mask)
        return task.loss_per_example(logits.float(), batch)

    return loss


def gradient_scale(config: TrainConfig) -> int:
    """What losses are multiplied with, so that small gradients do not vanish in fp16."""
    return config.loss_scale if config.autocast == "fp16" else 1


class PlainStepper:
    """Training without privacy: the mean gradient over a fixed number of examples.

    ``complete`` adds to the gradients, before they are looked at, what others computed; with it,
    a batch of which this process has no example is a step too.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        config: TrainConfig,
        pull: Proximal | None = None,
        complete: Callable[[Sequence[nn.Parameter]], None] | None = None,
    ) -> None:
        self._model, self._loss, self._optimizer, self._pull = model, loss, optimizer, pull
        self._complete = complete
        self._denominator = config.global_batch_size
        self._loss_scale = gradient_scale(config)
        self._max_norm = config.max_update_norm or math.inf
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad(set_to_none=True)  # of a training on this model that an error ended

    def micro_step(self, batch: Batch, *, last: bool) -> None:
        """Adds the micro-batch's gradient; at the last one clips, checks and updates.

        Raises:
            TrainingError: The gradient is not finite; the weights were not changed.
        """
        self.add_gradient(batch)
        if last:
            self._update()

    def add_gradient(self, batch: Batch) -> None:
        """Adds the micro-batch's gradient of the step's mean, ``loss_scale`` times too large."""
        mean = self._loss(self._model, batch).sum() / self._denominator
        (mean * self._loss_scale).backward()  # type: ignore[no-untyped-call]

    def empty_step(self) -> None:
        """Without examples there is no gradient, and nothing is done unless others have some."""
        if self._complete is not None:
            self._update()

    def _update(self) -> None:
        if self._complete is not None:
            self._complete(self._parameters)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self._loss_scale != 1:
            torch._foreach_div_(gradients, float(self._loss_scale))
        norm = nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise TrainingError(
                f"expected a finite gradient, got norm {norm.item()}",
                hint="lower train.learning_rate, or set train.max_update_norm; "
                'with train.autocast = "fp16", lower train.loss_scale',
            )
        if self._max_norm < math.inf:
            nn.utils.clip_grads_with_norm_(self._parameters, self._max_norm, norm)
        if self._pull is not None:
            self._pull.add_to_gradients(self._parameters)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """The configured optimizer over the trained parameters, matrices of Linear layers decaying."""
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    decaying = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} - embeddings
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in decaying], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if id(p) not in decaying], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Rate of ``step`` (from 0): linear warm-up, then constant or cosine down to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def epoch_batches(
    num_examples: int, batch_size: int, *, first_step: int, steps: int, seed: Sequence[int]
) -> Iterator[Sequence[int]]:
    """Full batches from a reshuffled pass after another; the same for the same arguments.

    For training without privacy only: shuffling is not Poisson sampling. A batch may span two
    passes, so ``first_step`` lets training go on where it stopped.

    Args:
        num_examples: Records in the data set, 1 or more.
        batch_size: Records in a batch.
        first_step: The step to begin with, from 0.
        steps: How many batches.
        seed: Public seed, such as (run seed, round).

    Raises:
        TrainingError: There is no record.
    """
    if num_examples < 1:
        raise TrainingError("expected 1 record or more to train on, got none")
    order: dict[int, npt.NDArray[np.int64]] = {}
    for step in range(first_step, first_step + steps):
        positions = range(step * batch_size, (step + 1) * batch_size)
        passes = {position // num_examples for position in positions}
        order = {
            number: order[number]
            if number in order
            else np.random.default_rng([*seed, number]).permutation(num_examples)
            for number in passes
        }
        yield [int(order[p // num_examples][p % num_examples]) for p in positions]


def run_steps(
    batches: Iterable[Sequence[int]],
    fetch: Callable[[Sequence[int]], Batch],
    stepper: Stepper,
    optimizer: Optimizer,
    config: TrainConfig,
    *,
    first_step: int,
    total_steps: int,
) -> int:
    """The training loop, with and without privacy: one step for each batch of indices.

    Args:
        batches: Indices of the examples of each step; a batch may be empty.
        fetch: Gives the examples at some indices, padded, on the model's device.
        stepper: What to do with a micro-batch.
        optimizer: Whose learning rate follows the schedule.
        config: Hyperparameters.
        first_step: Number of the first step in the whole run, from 0.
        total_steps: Steps of the whole run, for the schedule.

    Returns:
        Steps taken.

    Raises:
        TrainingError: ``fetch`` gives another number of examples than it was asked for.
    """
    step = first_step
    for step, indices in enumerate(batches, start=first_step + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step - 1, total_steps)
        size = config.micro_batch_size
        chunks = [indices[start : start + size] for start in range(0, len(indices), size)]
        for chunk in chunks:
            batch = fetch(chunk)
            if len(batch) != len(chunk):
                raise TrainingError(
                    f"expected a batch of {len(chunk)} examples, one for each record, "
                    f"got {len(batch)}",
                    hint="a record that counts twice is clipped twice",
                )
            stepper.micro_step(batch, last=chunk is chunks[-1])
        if not chunks:
            stepper.empty_step()
    return step - first_step
