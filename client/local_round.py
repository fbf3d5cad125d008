"""One round at a site: check, debit, train, reply. Knows nothing of Flower."""

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from client.policy import check_policy
from client.site import OnDevice, Site, Workshop
from core.digests import arrays_digest
from core.errors import MessageError
from core.messages import SpentBudget, TrainReply, TrainTask
from core.parameters import Arrays, load_arrays, to_arrays
from privacy.ledger import Ledger
from privacy.modes import PRIVACY_MODES


@dataclass(frozen=True)
class RoundResult:
    """What may leave the site after a round: new weights, and nothing else from records."""

    reply: TrainReply
    arrays: Arrays


def local_round(
    site: Site, workshop: Workshop, order: TrainTask, arrays: dict[str, npt.NDArray[Any]]
) -> RoundResult:
    """Runs an order of the coordinator, or refuses.

    Guarantees:
        Data is read only after the site's policy allowed the order and its ledger was debited,
        durably. What is returned is computed from records by the debited mechanism alone. An
        order is run at most once: a repeated or older one is refused.

    Args:
        site: Who runs it.
        workshop: Holds this thread's model.
        order: What to do.
        arrays: The global weights, by parameter name.

    Raises:
        RefusedError: By the policy or the budget; nothing was trained.
        PrivacyError: The guarantee cannot be given; nothing is returned.
        CloisterError: Anything else that keeps the site from training.
    """
    randomness = site.randomness(order)
    check_policy(
        order,
        site.policy,
        site=site.name,
        num_examples=site.num_examples,
        predictable_noise=not randomness.private,
    )
    model = workshop.model(order.terms)
    if workshop.digests.digest(arrays) != order.arrays_digest:
        raise MessageError("expected the weights that the task names, got others")
    mode = PRIVACY_MODES[order.terms.privacy.mode]
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
        load_arrays(model, arrays)
        mode.train(
            model,
            workshop.blueprint.task,
            OnDevice(site.data, workshop.device),
            order=order,
            randomness=randomness,
            executed=lambda steps: ledger.settle(sequence, steps),
        )
        trained = to_arrays(model)
        return RoundResult(_reply(order, trained, ledger), trained)


def _reply(order: TrainTask, arrays: Arrays, ledger: Ledger) -> TrainReply:
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
