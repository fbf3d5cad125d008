"""Privacy modes: what a round costs and how it trains. A new mode is one class and one line.

``local``: each site runs DP-SGD with its full noise. ``none``: no privacy, for baselines.
"""

import hashlib
from collections.abc import Callable
from typing import Final, Protocol

from torch import nn

from core.errors import PrivacyError
from core.messages import TrainTask
from core.tasks.interface import Task
from core.train import (
    PlainStepper,
    epoch_batches,
    make_loss,
    make_optimizer,
    proximal,
    run_steps,
)
from privacy.dp_sgd import DpSgdPlan, PrivateData, train_privately
from privacy.events import DpSgdEvent, Event, NonPrivateEvent
from privacy.random_source import RandomSource


class PrivacyMode(Protocol):
    """What a mode brings."""

    def event(self, order: TrainTask, randomness: RandomSource) -> Event:
        """What the ledger is debited before anything is computed from records."""

    def train(
        self,
        model: nn.Module,
        task: Task,
        data: PrivateData,
        *,
        order: TrainTask,
        randomness: RandomSource,
        executed: Callable[[int], None],
    ) -> None:
        """Trains ``model`` in place by the mechanism of ``event``; tells the steps that ran."""


class LocalDp:
    """DP-SGD at the site; nothing depends on the coordinator's honesty."""

    def event(self, order: TrainTask, randomness: RandomSource) -> Event:
        """The round's Gaussian steps; with predictable noise, a release without privacy."""
        plan = _plan(order)
        event = DpSgdEvent(
            noise_multiplier=plan.noise_multiplier,
            sample_rate=plan.sample_rate,
            max_batch_size=plan.max_batch_size,
            max_examples=plan.max_examples,
            steps=plan.steps,
            max_grad_norm=plan.max_grad_norm,
        )
        return event if randomness.private else NonPrivateEvent("test-noise", event)

    def train(
        self,
        model: nn.Module,
        task: Task,
        data: PrivateData,
        *,
        order: TrainTask,
        randomness: RandomSource,
        executed: Callable[[int], None],
    ) -> None:
        """By ``train_privately``, with the very plan that was debited."""
        terms = order.terms
        train_privately(
            model,
            task,
            data,
            plan=_plan(order),
            config=terms.train,
            source=randomness,
            first_step=(order.server_round - 1) * terms.train.steps_per_round,
            total_steps=terms.num_rounds * terms.train.steps_per_round,
            proximal_mu=terms.proximal_mu,
            executed=executed,
        )


class NoPrivacy:
    """Plain training; the ledger says for good that nothing is protected."""

    def event(self, order: TrainTask, randomness: RandomSource) -> Event:
        """A release of everything."""
        return NonPrivateEvent("no-privacy", None)

    def train(
        self,
        model: nn.Module,
        task: Task,
        data: PrivateData,
        *,
        order: TrainTask,
        randomness: RandomSource,
        executed: Callable[[int], None],
    ) -> None:
        """Reshuffled passes over the data, which go on from round to round."""
        config, terms = order.terms.train, order.terms
        optimizer = make_optimizer(model, config)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        first_step = (order.server_round - 1) * config.steps_per_round
        model.train()
        batches = epoch_batches(
            len(data),
            config.global_batch_size,
            first_step=first_step,
            steps=config.steps_per_round,
            seed=public_seed(order.task_digest, order.site),
        )
        stepper = PlainStepper(
            model,
            make_loss(task, autocast=config.autocast),
            optimizer,
            config,
            proximal(terms.proximal_mu, trained),
        )
        steps = run_steps(
            batches,
            data.fetch,
            stepper,
            optimizer,
            config,
            first_step=first_step,
            total_steps=terms.num_rounds * config.steps_per_round,
        )
        executed(steps)


def _plan(order: TrainTask) -> DpSgdPlan:
    if order.dp_sgd is None:
        raise PrivacyError("expected privacy constants in mode local, got none")
    return DpSgdPlan(
        noise_multiplier=order.dp_sgd.noise_multiplier,
        max_grad_norm=order.terms.privacy.max_grad_norm,
        sample_rate=order.dp_sgd.sample_rate,
        expected_batch_size=order.terms.train.global_batch_size,
        max_batch_size=order.dp_sgd.max_batch_size,
        max_examples=order.dp_sgd.max_examples,
        steps=order.terms.train.steps_per_round,
        gradient_mode=order.terms.privacy.gradient_mode,
        clipping=order.terms.privacy.clipping,
    )


def public_seed(task_digest: str, site: str) -> list[int]:
    """Seed of a site's batches without privacy: a function of what everyone knows."""
    digest = hashlib.sha256(f"{task_digest}/{site}".encode()).digest()
    return [int.from_bytes(digest[start : start + 4], "little") for start in (0, 4, 8, 12)]


PRIVACY_MODES: Final[dict[str, PrivacyMode]] = {"local": LocalDp(), "none": NoPrivacy()}
