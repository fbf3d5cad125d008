"""Training without privacy: a round's steps, at the leader and at its workers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from core.errors import TrainingError
from core.parallel.team import SOLO, Job, Team, WorkerSeat
from core.tasks.interface import Batch, Task
from core.train import (
    PlainStepper,
    TrainConfig,
    epoch_batches,
    make_loss,
    make_optimizer,
    proximal,
    run_steps,
)


class Examples(Protocol):
    """Tokenized records with random access."""

    def __len__(self) -> int:
        """Number of records."""

    def fetch(self, indices: Sequence[int]) -> Batch:
        """The examples at ``indices``, padded, on the model's device."""


def train_plainly(
    model: nn.Module,
    task: Task,
    data: Examples,
    *,
    config: TrainConfig,
    seed: Sequence[int],
    first_step: int,
    total_steps: int,
    proximal_mu: float = 0.0,
    team: Team = SOLO,
) -> int:
    """Trains ``model`` in place on reshuffled passes over the data.

    Args:
        model: Gives logits; its trained parameters are updated.
        task: Brings the loss per example.
        data: The site's records.
        config: Hyperparameters; one round's steps are taken.
        seed: Public seed of the batches.
        first_step: Number of the first step in the whole run, from 0.
        total_steps: Steps of the whole run, for the schedule.
        proximal_mu: FedProx's pull towards the weights at the call.
        team: The processes that share each batch, led by this one.

    Returns:
        Steps taken.

    Raises:
        TrainingError: There is no record, or a gradient is not finite.
        WorkerLostError: A process of the team died or hangs.
    """
    optimizer = make_optimizer(model, config)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    model.train()
    batches = epoch_batches(
        len(data),
        config.global_batch_size,
        first_step=first_step,
        steps=config.steps_per_round,
        seed=seed,
    )
    stepper = PlainStepper(
        model,
        make_loss(task, autocast=config.autocast),
        optimizer,
        config,
        proximal(proximal_mu, trained),
        None if team.alone else partial(_add_up, team.add_up),
    )
    with team.session(Job.of("plain", len(data), config)):
        return run_steps(
            team.deal(batches, trained),
            data.fetch,
            stepper,
            optimizer,
            config,
            first_step=first_step,
            total_steps=total_steps,
        )


def work_plainly(
    model: nn.Module, task: Task, data: Examples, *, job: Job, seat: WorkerSeat
) -> None:
    """A worker's part of ``train_plainly``: gradients of its records, until the leader is done.

    Raises:
        TrainingError: This process sees other records than the leader.
        WorkerLostError: The leader, or another worker, is gone.
    """
    check_same_records(data, job)
    config = job.train_config()
    optimizer = make_optimizer(model, config)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    model.train()
    loss = make_loss(task, autocast=config.autocast)
    stepper = _GradientsOnly(PlainStepper(model, loss, optimizer, config), trained, seat.add_up)
    try:
        run_steps(
            seat.deal(trained), data.fetch, stepper, optimizer, config, first_step=0, total_steps=1
        )
    finally:
        optimizer.zero_grad(set_to_none=True)


def check_same_records(data: Examples, job: Job) -> None:
    """Raises TrainingError where the leader sees another number of records; it says none."""
    if len(data) != job.num_examples:
        raise TrainingError(
            "expected as many records as the leader sees, got another number",
            hint="restart the client after a change of its data",
        )


class _GradientsOnly:
    """Gives its gradients to the leader, in place of an update."""

    def __init__(
        self,
        stepper: PlainStepper,
        parameters: Sequence[nn.Parameter],
        add_up: Callable[[Sequence[Tensor]], None],
    ) -> None:
        self._stepper, self._parameters, self._add_up = stepper, parameters, add_up

    def micro_step(self, batch: Batch, *, last: bool) -> None:
        """Adds the micro-batch's gradient; after the last one gives the sum away."""
        self._stepper.add_gradient(batch)
        if last:
            self.empty_step()

    def empty_step(self) -> None:
        """Takes part without an example."""
        _add_up(self._add_up, self._parameters)
        for parameter in self._parameters:
            parameter.grad = None


def _add_up(add_up: Callable[[Sequence[Tensor]], None], parameters: Sequence[nn.Parameter]) -> None:
    """Adds gradients over all processes; one that no process has stays away.

    A parameter without a gradient is left alone by the optimizer, and one with zeros decays.
    """
    there = torch.tensor(
        [float(p.grad is not None) for p in parameters], device=parameters[0].device
    )
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    add_up([there, *(p.grad for p in parameters if p.grad is not None)])
    for parameter, count in zip(parameters, there.tolist(), strict=True):
        if count == 0:
            parameter.grad = None
