"""One round at a site: check, debit, train, reply. Knows nothing of Flower."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from torch import nn

from client.policy import check_policy
from client.site import OnDevice, Site, Workshop
from core.audit_messages import AuditOrder
from core.digests import arrays_digest
from core.errors import MessageError, PolicyRefusedError, PrivacyError, RoundFailedError
from core.messages import SpentBudget, TrainReply, TrainTask
from core.parallel.team import Team
from core.parameters import Arrays, load_arrays, to_arrays
from core.tasks.interface import Task
from core.update_codec import encode_update
from privacy.distributed_sum import ClippedSum
from privacy.ledger import Ledger
from privacy.modes import PRIVACY_MODES, PrivacyMode
from privacy.random_source import RandomSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundResult:
    """What may leave the site after a round: new weights, and nothing else from records."""

    reply: TrainReply
    arrays: Arrays
    """The new weights as they travel, see ``core.update_codec``."""


def local_round(
    site: Site, workshop: Workshop, order: TrainTask, arrays: dict[str, npt.NDArray[Any]]
) -> RoundResult:
    """Runs an order of the coordinator, or refuses.

    Guarantees:
        Data is read only after the site's policy allowed the order and its ledger was debited,
        durably. What is returned is computed from records by the debited mechanism alone. An
        order is run at most once: a repeated or older one is refused. Whatever fails after the
        debit is one error with one text, which says nothing about records.

    Args:
        site: Who runs it.
        workshop: Holds this thread's model.
        order: What to do.
        arrays: The global weights, by parameter name.

    Raises:
        RefusedError: By the policy or the budget; nothing was trained.
        RoundFailedError: After the debit; nothing is returned.
        CloisterError: Anything else that keeps the site from training.
    """
    if order.terms.secure_aggregation is not None:
        raise PolicyRefusedError("expected terms whose updates travel unmasked, got others")
    with paid_round(site, workshop, order, arrays) as paid:
        if paid.train() is not None:
            raise PrivacyError("expected secure aggregation for one site's share of the noise")
        update = encode_update(to_arrays(paid.model), arrays, order.terms.update_encoding)
        return RoundResult(reply_to(order, update, paid.ledger), update)


@dataclass(frozen=True)
class PaidRound:
    """An order that was allowed and debited, with the global weights in the model."""

    order: TrainTask
    model: nn.Module
    task: Task
    data: OnDevice
    randomness: RandomSource
    ledger: Ledger
    sequence: int
    """The debit's entry in the ledger."""
    team: Team
    """The processes that share each batch."""

    @property
    def mode(self) -> PrivacyMode:
        """The privacy mode of the order's terms."""
        return PRIVACY_MODES[self.order.terms.privacy.mode]

    def train(self) -> ClippedSum | None:
        """Runs the debited mechanism; see ``PrivacyMode.train``."""
        return self.mode.train(
            self.model,
            self.task,
            self.data,
            order=self.order,
            randomness=self.randomness,
            executed=self.executed,
            team=self.team,
        )

    def executed(self, steps: int) -> None:
        """Tells the ledger what ran."""
        self.ledger.settle(self.sequence, steps)


@contextmanager
def paid_round(
    site: Site,
    workshop: Workshop,
    order: TrainTask,
    arrays: dict[str, npt.NDArray[Any]],
    *,
    total_examples: int | None = None,
) -> Iterator[PaidRound]:
    """An order, allowed and debited; in the body, whatever fails is ``RoundFailedError``.

    Guarantees and errors, and what is not said here: see ``local_round``.

    Args:
        site: Who runs it.
        workshop: Holds this thread's model.
        order: What to do.
        arrays: The global weights.
        total_examples: See ``check_policy``.
    """
    randomness = check_order(site, order, total_examples=total_examples)
    model = workshop.model(order.terms)
    if workshop.digests.digest(arrays) != order.arrays_digest:
        raise MessageError("expected the weights that the task names, got others")
    mode = PRIVACY_MODES[order.terms.privacy.mode]
    team = workshop.team()  # whole, or nothing is debited
    with site.open_ledger() as ledger:
        if order.ledger_witness is not None:
            ledger.check_witness(order.ledger_witness)
        sequence = ledger.reserve(
            mode.event(order, randomness),
            run_id=order.run_id,
            server_round=order.server_round,
            attempt=order.attempt,
            task_digest=order.task_digest,
            max_epsilon=site.policy.max_epsilon,
            delta=site.policy.max_delta,
            once=True,
        )
        with after_debit(order):
            load_arrays(model, arrays)
            data = OnDevice(site.data, workshop.device)
            task = workshop.blueprint.task
            yield PaidRound(order, model, task, data, randomness, ledger, sequence, team)


def check_order(site: Site, order: TrainTask, *, total_examples: int | None = None) -> RandomSource:
    """The randomness for an order that the site's policy allows.

    Raises:
        PolicyRefusedError: It does not.
    """
    randomness = site.randomness(order)
    check_policy(
        order,
        site.policy,
        site=site.name,
        num_examples=site.num_examples,
        predictable_noise=not randomness.private,
        total_examples=total_examples,
    )
    return randomness


def check_kept(site: Site, order: TrainTask, reply: TrainReply) -> None:
    """Checks that a reply that was kept may still leave the site.

    Guarantees:
        Returns only where the policy allows the order now, and the ledger continues the one that
        held this reply's debit: what was restored from an older copy releases nothing.

    Raises:
        PolicyRefusedError: The policy does not allow the order any more.
        LedgerError: The ledger is shorter than the coordinator or the reply itself remembers, or
            cannot be trusted.
    """
    check_order(site, order)
    with site.open_ledger() as ledger:
        if order.ledger_witness is not None:
            ledger.check_witness(order.ledger_witness)
        ledger.check_witness(reply.ledger_head)


@contextmanager
def after_debit(order: TrainTask | AuditOrder) -> Iterator[None]:
    """Turns whatever fails in its body into one error; the reason goes to the site's own log.

    Guarantees:
        Nothing but ``RoundFailedError``, with one fixed text, escapes of all ``Exception``: from
        here on a failure may follow from records, and so may its name.
    """
    try:
        yield
    except Exception as error:
        logger.exception(
            "round %d of run %s failed after its debit", order.server_round, order.run_id
        )
        raise RoundFailedError(
            "the round failed at the site after its debit", hint="the site's own log says why"
        ) from error


def reply_to(order: TrainTask, arrays: Arrays, ledger: Ledger) -> TrainReply:
    """The reply that says what ``arrays`` are and what the ledger holds now."""
    report = ledger.spent(order.terms.privacy.target_delta)
    return TrainReply(
        run_id=order.run_id,
        server_round=order.server_round,
        attempt=order.attempt,
        site=order.site,
        task_digest=order.task_digest,
        arrays_digest=arrays_digest(arrays),
        num_examples=order.num_examples,
        spent=SpentBudget(
            epsilon=report.epsilon if report.private else None,
            delta=order.terms.privacy.target_delta,
            private=report.private,
        ),
        ledger_head=ledger.head(),
    )
