"""A site's part of a step over all sites: one batch's clipped gradients, summed and encoded.

The sum leaves this module with its share of the noise or not at all. What trains and clips is what
``privacy.dp_sgd`` trains and clips with.
"""

from collections.abc import Callable
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import DataLoader

from core.errors import OutOfOrderError, PrivacyError
from core.messages import TrainTask
from core.parallel.team import SOLO, Job, Team
from core.parameters import trainable
from core.tasks.interface import Task
from core.train import gradient_scale, make_loss, run_steps
from privacy.clipping_stepper import ClippingStepper
from privacy.distributed import DistributedGrid, Ring, distributed_constants, grid_of_order
from privacy.dp_sgd import PrivateData, check_clipping, check_data_size
from privacy.engine import PublicConstantsEngine
from privacy.gradient_modes import GRADIENT_MODES, GradientMode
from privacy.random_source import RandomSource, RandomStream
from privacy.rehearsal import forget_gradients
from privacy.sampling import TruncatedPoissonSampler

_ONE: Final = 1  # a round is one step


class ClippedSum:
    """One site's clipped sum on the grid, which waits for its noise and its mask.

    Guarantees:
        It is given out once, with the noise in it, or never: no method shows it otherwise, it
        cannot be copied or pickled, and it is overwritten by ``wipe`` and by every error.
    """

    def __init__(self, grid: DistributedGrid, values: Ring, noise: RandomStream) -> None:
        self._grid = grid
        self._values: Ring | None = values
        self._noise = noise

    def noised(self, cohort: int) -> Ring:
        """The sum with this site's share of the noise, (dimension,) uint32; now the caller's.

        It is to be masked at once: one site's share of the noise protects nobody.

        Args:
            cohort: Sites that exchanged their keys (U1), as the protocol has bound them.

        Raises:
            OutOfOrderError: It was given out before, or wiped.
            CohortTooSmallError: So few sites cannot bear so many that collude; it is wiped.
        """
        values = self._values
        if values is None:
            raise OutOfOrderError("expected a clipped sum that waits for its mask, got none")
        try:
            self._grid.add_noise(values, self._noise, cohort=cohort)
        except BaseException:
            self.wipe()
            raise
        self._values = None
        return values

    def wipe(self) -> None:
        """Overwrites the sum; harmless where it is gone."""
        if self._values is not None:
            self._values.fill(0)
            self._values = None

    def __repr__(self) -> str:
        return "ClippedSum(values=***)"

    def __reduce__(self) -> NoReturn:
        """Raises: a copy could be noised again, and two noised copies give away more than one."""
        raise PrivacyError("expected a clipped sum to stay where it was computed, got a copy of it")


def clipped_sum(
    model: nn.Module,
    task: Task,
    data: PrivateData,
    *,
    order: TrainTask,
    randomness: RandomSource,
    executed: Callable[[int], None] = lambda _: None,
    team: Team = SOLO,
) -> ClippedSum:
    """The clipped sum of one truncated Poisson batch, on the order's grid.

    Guarantees:
        Each example adds at most the order's ``max_grad_norm`` (L2), or the call raises before a
        record is read. The weights of ``model`` do not change, and no gradient stays on it.
        Sampling and noise come from ``randomness``, whose streams are used once.

    Args:
        model: Gives logits; its trained parameters are what is summed over.
        task: Brings the loss per example.
        data: The site's records; at most the order's ``max_examples``.
        order: Public constants, in mode ``distributed``.
        randomness: Keys of this round, never used before.
        executed: Told 1 at the end, or 0 where an error ends the call after its checks.
        team: The processes that share the batch, led by this one.

    Raises:
        PrivacyError: The data set is empty or larger than accounted for, or a guarantee cannot
            be given; see its kinds.
    """
    grid, constants = grid_of_order(order), distributed_constants(order)
    dimension = sum(parameter.numel() for parameter in trainable(model).values())
    if dimension != grid.dimension:
        raise PrivacyError(
            f"expected {grid.dimension} trained parameters, as the order says, got {dimension}"
        )
    check_data_size(data, constants.max_examples)
    config, privacy = order.terms.train, order.terms.privacy
    mode = GRADIENT_MODES[privacy.gradient_mode]
    check_clipping(model, task, mode, config, clipping=privacy.clipping)
    model.train()
    noise = randomness.stream("noise")
    module, optimizer = _prepare(model, order, noise)
    sampler = TruncatedPoissonSampler(
        num_samples=len(data),
        sample_rate=constants.sample_rate,
        max_batch_size=constants.max_batch_size,
        steps=_ONE,
        stream=randomness.stream("sampling"),
    )
    stepper = ClippingStepper(
        module, optimizer, mode, make_loss(task, autocast=config.autocast), updates=False
    )
    summed = 0
    try:
        trained = list(trainable(model).values())
        with team.session(_job(order, len(data), mode)):
            batches = team.deal(sampler, trained)
            run_steps(
                batches, data.fetch, stepper, optimizer, config, first_step=0, total_steps=_ONE
            )
            _complete(trained, team)
        values = np.empty(grid.dimension, dtype=np.uint32)
        grid.encode_sum(_taken(model), values)
        summed = _ONE
    finally:
        try:
            executed(summed)
        finally:
            forget_gradients(module, model)
    return ClippedSum(grid, values, noise)


def _job(order: TrainTask, num_examples: int, mode: GradientMode) -> Job:
    """What the workers of a team do for a round."""
    privacy = order.terms.privacy
    return Job.of(
        "dp-sgd",
        num_examples,
        order.terms.train,
        gradient_mode=privacy.gradient_mode,
        clip=privacy.max_grad_norm * (1.0 - mode.slack(order.terms.train)),
        clipping=privacy.clipping,
    )


def _complete(trained: list[Any], team: Team) -> None:
    """Adds to the sums what the team's other processes summed."""
    sums = [parameter.summed_grad.detach().float().reshape(-1) for parameter in trained]
    team.add_up(sums)
    for parameter, whole in zip(trained, sums, strict=True):
        parameter.summed_grad = whole.view_as(parameter)


def _prepare(model: nn.Module, order: TrainTask, noise: RandomStream) -> tuple[Any, Any]:
    """Model and optimizer as Opacus prepares them; the latter clips, and never steps."""
    config, privacy = order.terms.train, order.terms.privacy
    constants = distributed_constants(order)
    mode = GRADIENT_MODES[privacy.gradient_mode]
    engine = PublicConstantsEngine(
        mode,
        sample_rate=constants.sample_rate,
        expected_batch_size=config.global_batch_size,
        sensitivity=privacy.max_grad_norm,
        noise=noise,
        pull=None,
        loss_scale=gradient_scale(config),
    )
    module, optimizer, *_ = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(trainable(model).values(), lr=0.0),
        data_loader=DataLoader(range(_ONE)),  # type: ignore[arg-type]
        noise_multiplier=constants.noise_multiplier,
        max_grad_norm=privacy.max_grad_norm * (1.0 - mode.slack(config)),
        loss_reduction="sum",
        clipping=privacy.clipping,
        grad_sample_mode=privacy.gradient_mode,
    )
    return module, optimizer


def _taken(model: nn.Module) -> dict[str, npt.NDArray[np.float32]]:
    """The sums by name, in fp32 and in the shape of their parameters."""
    sums: dict[str, npt.NDArray[np.float32]] = {}
    for name, parameter in trainable(model).items():
        summed: torch.Tensor | None = getattr(parameter, "summed_grad", None)
        if summed is None:
            raise PrivacyError(f"expected a clipped sum of {name}, got none")
        sums[name] = summed.detach().float().reshape(parameter.shape).cpu().numpy()
    return sums
