"""DP-SGD: the one place where the training loop and differential privacy meet."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from torch import Tensor, nn
from torch.utils.data import DataLoader

from core.errors import PrivacyError
from core.parallel.team import SOLO, Job, Team
from core.parameters import trainable
from core.tasks.interface import Batch, Task
from core.train import (
    TrainConfig,
    gradient_scale,
    make_loss,
    make_optimizer,
    proximal,
    run_steps,
)
from privacy.clipping_rules import CLIPPING_RULES
from privacy.clipping_stepper import ClippingStepper
from privacy.engine import PublicConstantsEngine
from privacy.gradient_modes import GRADIENT_MODES, GradientMode
from privacy.guards import check_arithmetic, check_layers, check_loss_contract
from privacy.random_source import RandomSource
from privacy.rehearsal import forget_gradients, rehearse
from privacy.sampling import TruncatedPoissonSampler

_MIN_CLIP: Final = 1e-12
_MAX_CLIP: Final = 1e12


@dataclass(frozen=True)
class DpSgdPlan:
    """Everything the guarantee depends on. All of it is public; none is a function of the data."""

    noise_multiplier: float
    """Noise deviation over ``max_grad_norm``."""
    max_grad_norm: float
    """Bound on the L2 norm of what one example adds: the sensitivity of a step's sum."""
    sample_rate: float
    """Chance of a record to be in a step's batch."""
    expected_batch_size: int
    """Denominator of a step's mean; the realised size never is."""
    max_batch_size: int
    """Batches are cut at this size."""
    max_examples: int
    """Largest data set that the accounting covers."""
    steps: int
    """Noised steps."""
    gradient_mode: str
    """``hooks``, ``ghost`` or ``one_backward``."""
    clipping: str = "flat"
    """``flat``, ``per_layer`` or ``automatic``: how that bound is kept."""

    def __post_init__(self) -> None:
        """Raises PrivacyError where a value is out of its range; NaN is out of every range.

        The clip stays away from the ends of fp32, where products round to zero or to infinity.
        """
        positive = (self.noise_multiplier, self.max_grad_norm, self.sample_rate)
        counts = (self.expected_batch_size, self.max_batch_size, self.max_examples, self.steps)
        if not all(0 < value < math.inf for value in positive) or not self.sample_rate <= 1:
            raise PrivacyError(
                "expected finite positive noise, clip and sampling rate (at most 1), got "
                f"{positive}"
            )
        if not _MIN_CLIP <= self.max_grad_norm <= _MAX_CLIP:
            raise PrivacyError(
                f"expected a clip between {_MIN_CLIP} and {_MAX_CLIP}, got {self.max_grad_norm}"
            )
        if self.gradient_mode not in GRADIENT_MODES:
            raise PrivacyError(
                f"expected a gradient mode of {', '.join(GRADIENT_MODES)}, "
                f"got {self.gradient_mode!r}"
            )
        if self.clipping not in CLIPPING_RULES:
            raise PrivacyError(
                f"expected a clipping of {', '.join(CLIPPING_RULES)}, got {self.clipping!r}"
            )
        if not all(count >= 1 for count in counts):
            raise PrivacyError(f"expected sizes and steps of 1 or more, got {counts}")


class PrivateData(Protocol):
    """Tokenized records with random access."""

    def __len__(self) -> int:
        """Number of records: private, and used for the sampling only."""

    def fetch(self, indices: Sequence[int]) -> Batch:
        """The examples at ``indices``, padded."""


def check_data_size(data: PrivateData, max_examples: int) -> None:
    """Refuses a data set that the accounting does not cover.

    Raises:
        PrivacyError: It is empty or too large; the message does not say how large.
    """
    if not 1 <= len(data) <= max_examples:
        raise PrivacyError(
            f"expected between 1 and {max_examples} records, which the accounting covers; "
            "this site holds another number",
            hint="declare a larger public num_examples for this site",
        )


def check_clipping(
    model: nn.Module, task: Task, mode: GradientMode, config: TrainConfig, *, clipping: str
) -> None:
    """Everything that must hold of a process, a model and a loss before records are clipped.

    Raises:
        PrivacyError: Names what does not.
    """
    check_arithmetic(next(model.parameters()).device)
    check_layers(model, mode.further_layers())
    mode.check(model, config, clipping)
    check_loss_contract(model, task, make_loss(task, autocast="off"))
    rehearse(
        model, task, make_loss(task, autocast=config.autocast), mode, config, clipping=clipping
    )


def _reordered(
    add_up: Callable[[Sequence[Tensor]], None],
    given: Sequence[nn.Parameter],
    wanted: Sequence[nn.Parameter],
) -> Callable[[Sequence[Tensor]], None]:
    """``add_up`` for sums in the order of ``given``, which it takes in the order of ``wanted``."""
    places = {id(parameter): place for place, parameter in enumerate(given)}
    return lambda sums: add_up([sums[places[id(parameter)]] for parameter in wanted])


def train_privately(
    model: nn.Module,
    task: Task,
    data: PrivateData,
    *,
    plan: DpSgdPlan,
    config: TrainConfig,
    source: RandomSource,
    first_step: int,
    total_steps: int,
    proximal_mu: float = 0.0,
    executed: Callable[[int], None] = lambda _: None,
    team: Team = SOLO,
) -> int:
    """Trains ``model`` in place by DP-SGD.

    Guarantees:
        The weights after the call are a ``plan``-accounted function of the data: a composition of
        ``plan.steps`` Gaussian mechanisms with noise ``noise_multiplier`` over truncated Poisson
        samples, each of sensitivity ``max_grad_norm`` when one record is added or removed.
        Clipping is on for every trained parameter, or the call raises before the first step.
        Noise and sampling come from ``source`` and its streams are used once. With a ``team`` the
        mechanism is the same: this process alone samples, from all records, and adds the noise,
        once, to the sum over all processes; a step counts whoever had examples in it.

    Args:
        model: Gives logits; its trained parameters are updated.
        task: Brings the loss per example.
        data: The site's records; at most ``plan.max_examples``.
        plan: Public constants.
        config: Hyperparameters.
        source: Keys of this round, never used before.
        first_step: Number of the first step in the whole run, for the schedule.
        total_steps: Steps of the whole run, for the schedule.
        proximal_mu: FedProx's pull towards the weights at the call.
        executed: Told the number of noised steps at the end, also when an error ends the
            training.
        team: The processes that share each batch, led by this one.

    Returns:
        Noised steps; equal to ``plan.steps``.

    Raises:
        PrivacyError: The data set is empty or larger than accounted for, or a guarantee cannot
            be given; see its kinds.
        WorkerLostError: A process of the team died or hangs.

    Source: Abadi et al. 2016, algorithm 1.
    """
    check_data_size(data, plan.max_examples)
    mode = GRADIENT_MODES[plan.gradient_mode]
    loss = make_loss(task, autocast=config.autocast)
    check_clipping(model, task, mode, config, clipping=plan.clipping)
    model.train()
    optimizer = make_optimizer(model, config)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    engine = PublicConstantsEngine(
        mode,
        sample_rate=plan.sample_rate,
        expected_batch_size=plan.expected_batch_size,
        sensitivity=plan.max_grad_norm,
        noise=source.stream("noise"),
        pull=proximal(proximal_mu, trained),
        loss_scale=gradient_scale(config),
    )
    sampler = TruncatedPoissonSampler(
        num_samples=len(data),
        sample_rate=plan.sample_rate,
        max_batch_size=plan.max_batch_size,
        steps=plan.steps,
        stream=source.stream("sampling"),
    )
    clip = plan.max_grad_norm * (1.0 - mode.slack(config))
    module, private_optimizer, *_ = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(range(len(data)), batch_sampler=sampler),  # type: ignore[arg-type]
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=clip,
        loss_reduction="sum",
        clipping=plan.clipping,
        grad_sample_mode=plan.gradient_mode,
    )
    in_order = list(trainable(model).values())  # as a worker has them
    private_optimizer.complete_sums = _reordered(team.add_up, trained, in_order)
    stepper = ClippingStepper(module, private_optimizer, mode, loss)
    job = Job.of(
        "dp-sgd",
        len(data),
        config,
        gradient_mode=plan.gradient_mode,
        clip=clip,
        clipping=plan.clipping,
    )
    try:
        with team.session(job):
            run_steps(
                team.deal(sampler, in_order),
                data.fetch,
                stepper,
                private_optimizer,
                config,
                first_step=first_step,
                total_steps=total_steps,
            )
    finally:
        try:
            executed(engine.accountant.steps)
        finally:
            forget_gradients(module, model)
    if engine.accountant.steps != plan.steps:
        raise PrivacyError(
            f"expected {plan.steps} noised steps, got {engine.accountant.steps}: "
            "what ran is not what was accounted for"
        )
    return plan.steps
