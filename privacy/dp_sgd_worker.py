"""A worker's part of DP-SGD: clipped sums of its records, for a leader who adds the noise.

It has no sampler, no noise, no accountant and no ledger, and its optimizer never steps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import PrivacyError
from core.parallel.team import Job, WorkerSeat
from core.parameters import trainable
from core.plain_training import check_same_records
from core.tasks.interface import Task
from core.train import Loss, gradient_scale, make_loss, run_steps
from privacy.clipping_stepper import ClippingStepper
from privacy.dp_sgd import PrivateData, check_clipping
from privacy.gradient_modes import GRADIENT_MODES, GradientMode
from privacy.optimizers import CalibratedNoise, flat_sum
from privacy.random_source import RandomSource
from privacy.rehearsal import forget_gradients


def work_privately(
    model: nn.Module, task: Task, data: PrivateData, *, job: Job, seat: WorkerSeat
) -> None:
    """Gives the leader clipped sums, step by step, until it is done.

    Guarantees:
        Each record's gradient is clipped here as the leader clips its own, and what made sure of
        that there makes sure of it here. A batch of which no record is this worker's gives zeros.
        No sum is kept after it was given away.

    Args:
        model: Built like the leader's; its trained weights are overwritten.
        task: Brings the loss per example.
        data: The site's records, as the leader sees them.
        job: What the leader asks for.
        seat: This worker's end of the team.

    Raises:
        PrivacyError: Clipping cannot be guaranteed in this process.
        TrainingError: This process sees other records than the leader.
        WorkerLostError: The leader, or another worker, is gone.
    """
    check_same_records(data, job)
    if job.gradient_mode not in GRADIENT_MODES:
        raise PrivacyError(f"expected a known gradient mode, got {job.gradient_mode!r}")
    mode, config = GRADIENT_MODES[job.gradient_mode], job.train_config()
    check_clipping(model, task, mode, config, clipping=job.clipping)
    model.train()
    trained = list(trainable(model).values())
    plain = torch.optim.SGD(trained, lr=0.0)
    optimizer = mode.optimizer_class(
        plain,
        noise_multiplier=1.0,  # never drawn
        max_grad_norm=job.clip,
        sensitivity=job.clip * 2,  # the leader's is; here nothing is calibrated to it
        expected_batch_size=1,
        noise=RandomSource.fresh().stream("never drawn"),
        pull=None,
        clipping=job.clipping,
        loss_scale=gradient_scale(config),
    )
    module = mode.wrap(model, job.clip)
    stepper = _SumsOnly(module, optimizer, mode, make_loss(task, autocast=config.autocast), seat)
    try:
        run_steps(
            seat.deal(trained),
            data.fetch,
            stepper,
            plain,
            config,
            first_step=0,
            total_steps=1,
        )
    finally:
        forget_gradients(module, model)


class _SumsOnly(ClippingStepper):
    """Clips and sums as the leader's stepper does, and gives the sum away in place of a step."""

    def __init__(
        self,
        module: Any,
        optimizer: CalibratedNoise,
        mode: GradientMode,
        loss: Loss,
        seat: WorkerSeat,
    ) -> None:
        super().__init__(module, optimizer, mode, loss, updates=False)
        self._add_up: Callable[[Sequence[Tensor]], None] = seat.add_up
        self._trained: list[nn.Parameter] = list(optimizer.params)

    def _advance(self, *, last: bool) -> None:
        super()._advance(last=last)
        if last:
            self._add_up([flat_sum(parameter) for parameter in self._trained])
            for parameter in self._trained:
                parameter.__dict__["summed_grad"] = None
