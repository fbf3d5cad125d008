"""An audit at a site: check, debit, count, add noise, reply. Knows nothing of Flower."""

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from client.local_round import after_debit
from client.policy import check_identity, check_terms
from client.site import Site, TestRandomness, Workshop
from core.audit_messages import MAX_COUNT, AuditOrder, AuditReply
from core.config_sections import AuditSection
from core.data.held_out import Split
from core.errors import MessageError, PolicyRefusedError
from core.messages import SpentBudget
from core.parameters import load_arrays
from core.record_counts import CountShape, RecordCounts, count, score_records
from privacy.events import Event, LaplaceCountsEvent, NonPrivateEvent
from privacy.ledger import Ledger
from privacy.noised_counts import counts_event, noised_counts
from privacy.random_source import RandomSource


def audit_round(
    site: Site, workshop: Workshop, order: AuditOrder, arrays: dict[str, npt.NDArray[Any]]
) -> AuditReply:
    """Counts the site's records by group, label and prediction, and by their loss; or refuses.

    Guarantees:
        Records are read only after the policy allowed the order, what it asks was found to be
        what the installed file of the federation says, and the ledger was debited, durably, for
        each of the releases. What is computed from records leaves only as counts under the
        debited noise; exact ones leave only of a run that is not private, from a site whose policy
        allows that. An order is answered at most once. Whatever fails after the debit is one
        error with one text. How many records stand in no cell, for want of a group, changes
        nothing but the counts.

    Not hidden: how long it takes, which follows from the number of records, as in a round. A
    refusal by the budget may leave the first of two debits in the ledger: nothing of it is
    computed.

    Args:
        site: Who counts.
        workshop: Holds this thread's model.
        order: What to count.
        arrays: The released weights, by parameter name.

    Raises:
        RefusedError: By the policy or the budget; nothing was counted.
        RoundFailedError: After the debit; nothing is returned.
        CloisterError: Anything else that keeps the site from answering.
    """
    randomness = _source(site, order)
    split = check_audit(site, workshop, order, predictable_noise=not randomness.private)
    model = workshop.model(order.terms)
    if workshop.digests.digest(arrays) != order.arrays_digest:
        raise MessageError("expected the weights that the order names, got others")
    event = counts_event(order.epsilon, order.shape.num_releases)
    signed = _cosign(site, order)
    with site.open_ledger() as ledger:
        if order.ledger_witness is not None:
            ledger.check_witness(order.ledger_witness)
        debits = _debit(ledger, site, order, _debited(order, event, randomness))
        with after_debit(order):
            load_arrays(model, arrays)
            counts = _count(model, workshop, split, order.shape)
            for debit in debits:
                ledger.settle(debit, 1)
            if order.terms.privacy.mode != "none":
                counts = _noised(counts, event, randomness)
                return _reply(order, counts, event.scale, signed, ledger)
            return _reply(order, counts, None, signed, ledger)


def check_audit(
    site: Site, workshop: Workshop, order: AuditOrder, *, predictable_noise: bool
) -> Split:
    """The records that may be counted: all of the site's.

    Raises:
        PolicyRefusedError: Says what was asked and what is allowed; no function of the records.
        AuditError: What is installed makes too large a table.
    """
    if site.policy.audit != "noised":
        raise PolicyRefusedError(
            f"expected nothing to be counted for an audit at {site.name}, got an order to count",
            hint='policy.audit = "noised" answers audits, under noise that the ledger is debited',
        )
    check_identity(order, site.policy, site.name)
    check_terms(order.terms, site.policy)
    if (
        order.terms.privacy.mode != "none"
        and predictable_noise
        and not site.policy.allow_test_noise
    ):
        raise PolicyRefusedError(
            "expected noise that nobody can predict, got a test key",
            hint="only a site whose policy says allow_test_noise = true takes part",
        )
    if site.audit is None or site.split is None:
        raise PolicyRefusedError(
            f"expected a site that knows what may be counted, got {site.name} without it",
            hint="the federation's file must be installed here",
        )
    _check_question(order, site.audit, workshop)
    return site.split


def _check_question(order: AuditOrder, audit: AuditSection, workshop: Workshop) -> None:
    blueprint = workshop.blueprint
    installed = CountShape.of(audit, blueprint.section, blueprint.config.vocab_size)
    asked = order.shape
    for name, expected, got in (
        ("audit.attributes", installed.attributes, asked.attributes),
        ("labels", installed.labels, asked.labels),
        ("edges of the histogram", installed.edges, asked.edges),
        ("audit.epsilon", audit.epsilon, order.epsilon),
    ):
        if expected != got:
            raise PolicyRefusedError(
                f"expected the {name} that are installed here, got others",
                hint="install the same file of the federation at every site",
            )


def _source(site: Site, order: AuditOrder) -> RandomSource:
    """Keys from the operating system, unless the whole site is a test."""
    if isinstance(site.randomness, TestRandomness):
        return site.randomness.source(
            f"audit/{order.arrays_digest}/{order.task_digest}/{order.attempt}/{site.name}"
        )
    return RandomSource.fresh()


def _cosign(site: Site, order: AuditOrder) -> str:
    """The site's signature of the log's checkpoint, where there are both."""
    if not order.checkpoint or site.witness is None:
        return ""
    return site.witness(order.checkpoint)


def _debited(order: AuditOrder, event: LaplaceCountsEvent, randomness: RandomSource) -> Event:
    if order.terms.privacy.mode == "none":
        return NonPrivateEvent("no-privacy", event)
    return event if randomness.private else NonPrivateEvent("test-noise", event)


def _debit(ledger: Ledger, site: Site, order: AuditOrder, event: Event) -> list[int]:
    """One debit for each release; the orders of the run itself are left as they are."""
    return [
        ledger.reserve(
            event,
            run_id=order.debit_id,
            server_round=order.attempt,
            attempt=release,
            task_digest=order.task_digest,
            max_epsilon=site.policy.max_epsilon,
            delta=site.policy.max_delta,
            once=True,
        )
        for release in range(1, order.shape.num_releases + 1)
    ]


def _count(model: nn.Module, workshop: Workshop, split: Split, shape: CountShape) -> RecordCounts:
    model.eval()
    task, device = workshop.blueprint.task, workshop.device
    return count(score_records(model, task, split, device), shape)


def _noised(
    counts: RecordCounts, event: LaplaceCountsEvent, randomness: RandomSource
) -> RecordCounts:
    """The table and the histogram, each from a stream of its own."""
    return RecordCounts(
        noised_counts(counts.cells, event, randomness.stream("audit-cells")),
        noised_counts(counts.histogram, event, randomness.stream("audit-histogram")),
    )


def _reply(
    order: AuditOrder, counts: RecordCounts, scale: float | None, signed: str, ledger: Ledger
) -> AuditReply:
    delta = order.terms.privacy.target_delta
    report = ledger.spent(delta)
    return AuditReply(
        run_id=order.run_id,
        attempt=order.attempt,
        site=order.site,
        task_digest=order.task_digest,
        arrays_digest=order.arrays_digest,
        cells=_flat(counts.cells),
        histogram=_flat(counts.histogram),
        scale=scale,
        spent=SpentBudget(
            epsilon=report.epsilon if report.private else None, delta=delta, private=report.private
        ),
        ledger_head=ledger.head(),
        cosignature=signed,
    )


def _flat(counts: npt.NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(number) for number in counts.clip(-MAX_COUNT, MAX_COUNT).flat)
