"""Privacy modes: what a round costs and how it trains. A new mode is one class and one line.

``local``: each site runs DP-SGD with its full noise. ``distributed``: a round is one step over the
union of the sites, whose noise is the sum of their shares. ``none``: no privacy, for baselines.
"""

import hashlib
from collections.abc import Callable
from typing import Final, Protocol

from torch import nn

from core.errors import PrivacyError
from core.messages import TrainTask
from core.parallel.team import SOLO, Team
from core.plain_training import train_plainly
from core.tasks.interface import Task
from privacy.distributed import distributed_event
from privacy.distributed_sum import ClippedSum, clipped_sum
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
        team: Team = SOLO,
    ) -> ClippedSum | None:
        """Runs the mechanism of ``event``, and tells the steps that ran.

        The processes of ``team`` share each batch; this one leads them.

        Returns:
            ``None`` where ``model`` was trained in place: its weights may leave the site. Else
            ``model`` is as it was, and what leaves the site is the sum's ``noised`` integers,
            under a mask.
        """


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
        team: Team = SOLO,
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
            team=team,
        )


class DistributedDp:
    """One step over all sites; private if so many of them add their share, and few collude."""

    def event(self, order: TrainTask, randomness: RandomSource) -> Event:
        """The round's one step; with predictable noise, a release without privacy."""
        event = distributed_event(order)
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
        team: Team = SOLO,
    ) -> ClippedSum:
        """By ``clipped_sum``; the optimizer's step is the coordinator's."""
        return clipped_sum(
            model, task, data, order=order, randomness=randomness, executed=executed, team=team
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
        team: Team = SOLO,
    ) -> None:
        """Reshuffled passes over the data, which go on from round to round."""
        terms = order.terms
        steps = train_plainly(
            model,
            task,
            data,
            config=terms.train,
            seed=public_seed(order.task_digest, order.site),
            first_step=(order.server_round - 1) * terms.train.steps_per_round,
            total_steps=terms.num_rounds * terms.train.steps_per_round,
            proximal_mu=terms.proximal_mu,
            team=team,
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


PRIVACY_MODES: Final[dict[str, PrivacyMode]] = {
    "local": LocalDp(),
    "distributed": DistributedDp(),
    "none": NoPrivacy(),
}
