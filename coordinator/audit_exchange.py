"""Asks sites for the counts of an audit, over any grid, and keeps what fits the question."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from coordinator.payload import share_record, to_record
from coordinator.run_directory import write_json
from coordinator.validation import dropped, entry, read_refusal
from core.audit_messages import (
    AUDIT,
    AUDIT_FILE,
    AbsentSite,
    AuditOrder,
    AuditReply,
    CountsDocument,
    CountsQuestion,
)
from core.digests import arrays_digest
from core.errors import MessageError, RunError
from core.messages import MAX_TEXT, LedgerHead, decode, encode

# Of the noise: P[|X| > 64 scale] is 2e-28 and less.
_LARGEST_NOISE_IN_SCALES: Final = 64


@dataclass(frozen=True)
class Gathered:
    """What all sites said, by name; each asked site stands in one of the two."""

    replies: Mapping[str, AuditReply]
    absent: Mapping[str, AbsentSite]


def gather(
    grid: Grid,
    nodes: Mapping[int, str],
    order: AuditOrder,
    arrays: Mapping[str, npt.NDArray[Any]],
    *,
    timeout: float | None = None,
    witnesses: Mapping[str, LedgerHead] | None = None,
    checkpoints: Mapping[str, str] | None = None,
) -> Gathered:
    """Asks every site that is there, once.

    Guarantees:
        Nothing that a message holds raises. A reply is kept only where it answers this very order
        (run, attempt, site, model, terms), has exactly the shape that was asked for, and is noised
        as much as it must be; any other site is named with the reason. Two replies of one node
        contradict each other, so both are dropped.

    Args:
        grid: Reaches the sites.
        nodes: Their names, by node id.
        order: What to ask; its ``site`` is put in for each.
        arrays: The released weights.
        timeout: A reply that comes later, in seconds, is dropped by name.
        witnesses: The last ledger head that was seen of each site.
        checkpoints: What each site is to co-sign, as JSON.

    Raises:
        RunError: ``arrays`` are not what the order names, or the run was interrupted.
    """
    if arrays_digest(arrays) != order.arrays_digest:
        raise RunError("expected the weights that the audit's order names, got others")
    there = set(grid.get_node_ids())
    orders = {
        node: order.model_copy(
            update={
                "site": site,
                "ledger_witness": (witnesses or {}).get(site),
                "checkpoint": (checkpoints or {}).get(site, order.checkpoint),
            }
        )
        for node, site in nodes.items()
        if node in there
    }
    answers: dict[int, list[Message]] = {node: [] for node in orders}
    for message in _ask(grid, orders, to_record(arrays), timeout):
        answers.setdefault(message.metadata.src_node_id, []).append(message)
    replies: dict[str, AuditReply] = {}
    absent = {
        site: AbsentSite(site=site, code="not-connected", message="the site is not there")
        for node, site in nodes.items()
        if node not in there
    }
    for node, asked in orders.items():
        judged = _judge(answers[node], asked)
        if isinstance(judged, AuditReply):
            replies[asked.site] = judged
        else:
            absent[asked.site] = judged
    return Gathered(dict(sorted(replies.items())), dict(sorted(absent.items())))


def write_counts(folder: Path, order: AuditOrder, gathered: Gathered) -> Path:
    """Writes what the sites said, wholly or not at all.

    Raises:
        RunError: The disk cannot be written.
    """
    fields = {name: getattr(order, name) for name in CountsQuestion.model_fields}
    document = CountsDocument(
        question=CountsQuestion(**fields),
        task_digest=order.task_digest,
        replies=tuple(gathered.replies.values()),
        absent=tuple(gathered.absent.values()),
    )
    path = folder / AUDIT_FILE
    write_json(path, document.model_dump(mode="json"))
    return path


def _ask(
    grid: Grid, orders: Mapping[int, AuditOrder], record: ArrayRecord, timeout: float | None
) -> list[Message]:
    messages = (
        grid.create_message(
            RecordDict(
                {
                    "audit": ConfigRecord({"audit": encode(order)}),
                    "arrays": share_record(record),
                }
            ),
            AUDIT,
            node,
            "audit",
            timeout,
        )
        for node, order in orders.items()
    )
    return list(grid.send_and_receive(messages, timeout=timeout))


def _judge(messages: list[Message], order: AuditOrder) -> AuditReply | AbsentSite:
    if not messages:
        return _absent(order, "no-reply", "no reply before the deadline")
    if len(messages) > 1:
        return _absent(
            order, "duplicate-reply", f"expected one reply, got {len(messages)}; all dropped"
        )
    if messages[0].has_error():
        bad = dropped(messages[0].error, order.site)
        return _absent(order, bad.code, bad.message)
    content = messages[0].content
    try:
        if set(content) == {"refusal"}:
            refusal = read_refusal(content, order)
            return _absent(order, refusal.code, refusal.message)
        return check_audit_reply(content, order)
    except MessageError as error:
        return _absent(order, "invalid-reply", error.message)


def check_audit_reply(content: RecordDict, order: AuditOrder) -> AuditReply:
    """Reads one reply against what its site was asked.

    Guarantees:
        A return answers this very order, with as many integers as were asked for, none below what
        the noise makes of an empty cell, under the noise that was paid for, and nothing else: a
        record that was not asked for could carry anything.

    Deliberately not checked here: whether the counts are true. A site can lie about its records.

    Raises:
        MessageError: Anything else, with what was expected and what was found.
    """
    if set(content) != {"counts"}:
        names = ", ".join(sorted(ascii(name)[:40] for name in content)[:4]) or "none"
        raise MessageError(f"expected the record 'counts', got {names}")
    reply = decode(AuditReply, entry(content, "counts"))
    for name in ("run_id", "attempt", "site", "task_digest", "arrays_digest"):
        expected, got = getattr(order, name), getattr(reply, name)
        if expected != got:
            raise MessageError(f"expected a reply with {name} {expected}, got {got}")
    shape = order.shape
    bins = shape.histogram[0] * shape.histogram[1]
    for what, numbers, size in (
        ("cells", reply.cells, shape.num_cells),
        ("bins", reply.histogram, bins),
    ):
        if len(numbers) != size:
            raise MessageError(f"expected {size} {what}, got {len(numbers)}")
    _check_noise(reply, order)
    _check_ledger(reply, order)
    return reply


def _check_noise(reply: AuditReply, order: AuditOrder) -> None:
    private = order.terms.privacy.mode != "none"
    scale = order.shape.num_releases / order.epsilon if private else None
    if reply.scale != scale:
        raise MessageError(f"expected counts under noise of scale {scale}, got {reply.scale}")
    lowest = -_LARGEST_NOISE_IN_SCALES * (scale or 0.0)
    if min(*reply.cells, *reply.histogram) < lowest:
        raise MessageError(f"expected counts of {lowest:g} or more, got a smaller one")


def _check_ledger(reply: AuditReply, order: AuditOrder) -> None:
    if reply.spent.private and reply.spent.epsilon is None:
        raise MessageError("expected an epsilon from a ledger that is private, got none")
    # Of each release a debit and what ran.
    least = 2 * order.shape.num_releases
    before = order.ledger_witness.sequence if order.ledger_witness else 0
    if reply.ledger_head.sequence < before + least:
        raise MessageError(
            f"expected a ledger of at least {before + least} entries, "
            f"got one of {reply.ledger_head.sequence}"
        )


def _absent(order: AuditOrder, code: str, message: str) -> AbsentSite:
    return AbsentSite(site=order.site, code=code, message=ascii(message)[1:-1][:MAX_TEXT])
