"""Decides which replies a strategy may see: a bad one is dropped by name, never the run.

Deliberately not checked here: who sent a message (the grid vouches for ``src_node_id``), and
whether a site trained honestly (a bound on the norm of its update limits what it can do).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict

from coordinator.flower import REPLY_REJECTED
from coordinator.payload import from_record
from core.array_codec import Manifest
from core.audit_messages import AuditOrder
from core.digests import arrays_digest
from core.errors import MessageError
from core.messages import Refusal, TrainReply, TrainTask, decode
from core.parameters import difference_norm
from core.run_record import RejectedReply, SiteRefusal
from core.update_codec import UpdateEncoding, decode_update, reply_manifest

# Strategies square what they are given, in fp32: one larger number, and a moment is infinite for
# ever after. No honest weight comes near it.
_LARGEST: Final = 2.0**60

Fp32Arrays = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class ReplyRules:
    """What every reply of a round is measured against."""

    global_arrays: Mapping[str, npt.NDArray[Any]]
    """The weights that were sent out."""
    encoding: UpdateEncoding
    """How replies travel."""
    manifest: Manifest
    """Their names, shapes and headers as they travel."""
    max_update_norm: float | None
    """Largest L2 norm of an update; ``None`` for no bound."""
    verify_digest: bool
    """Recompute ``arrays_digest``. False only where the arrays crossed no wire, so that there
    is nothing between the site's bytes and ours which a digest could find."""

    @classmethod
    def of(
        cls,
        global_arrays: Mapping[str, npt.NDArray[Any]],
        *,
        encoding: UpdateEncoding,
        max_update_norm: float | None,
        verify_digest: bool,
    ) -> "ReplyRules":
        """The rules for replies to ``global_arrays``."""
        manifest = reply_manifest(global_arrays, encoding)
        return cls(global_arrays, encoding, manifest, max_update_norm, verify_digest)


@dataclass(frozen=True)
class ValidReply:
    """A reply that passed every check."""

    site: str
    arrays: Fp32Arrays
    reply: TrainReply


@dataclass(frozen=True)
class Outcome:
    """All that came back from one sending."""

    valid: Sequence[ValidReply]
    refusals: Sequence[SiteRefusal]
    rejected: Sequence[RejectedReply]


def sort_replies(
    messages: Iterable[Message], orders: Mapping[int, TrainTask], rules: ReplyRules
) -> Outcome:
    """Validates what came back; every asked site ends in exactly one of the three lists.

    Guarantees:
        Nothing that a message holds raises. A node that was not asked is named and dropped. Two
        replies from one node contradict each other, so both are dropped, in whatever order they
        came. The lists are in the order of the sites' names.

    Args:
        messages: The replies.
        orders: What each node was asked, by node id.
        rules: What holds for all of them.
    """
    verdicts: dict[int, ValidReply | SiteRefusal | RejectedReply] = {}
    counts = dict.fromkeys(orders, 0)
    rejected = []
    for message in messages:
        node = message.metadata.src_node_id
        if node not in orders:
            rejected.append(RejectedReply(f"node {node}", "unknown-node", "was not asked"))
            continue
        counts[node] += 1
        if counts[node] == 1:
            # Judged while other sites still work, where the grid gives replies as they come.
            verdicts[node] = _judge(message, orders[node], rules)
    valid, refusals = [], []
    for node, count in counts.items():
        match verdicts[node] if count == 1 else _miscounted(count, orders[node]):
            case ValidReply() as reply:
                valid.append(reply)
            case SiteRefusal() as refusal:
                refusals.append(refusal)
            case RejectedReply() as bad:
                rejected.append(bad)
    return Outcome(
        sorted(valid, key=lambda item: item.site),
        sorted(refusals, key=lambda item: item.site),
        sorted(rejected, key=lambda item: item.site),
    )


def validate_reply(
    message: Message, task: TrainTask, rules: ReplyRules
) -> ValidReply | SiteRefusal:
    """Reads one reply against what its site was asked.

    Guarantees:
        A ``ValidReply`` answers this very task (run, round, attempt, site, terms), holds exactly
        the trained arrays, decoded to fp32, all finite and of sizes that can be squared, within
        ``max_update_norm`` of the global weights, and nothing else: a record that was not asked
        for could carry anything.

    Raises:
        MessageError: Anything else, with what was expected and what was found.
    """
    content = message.content
    if set(content) == {"refusal"}:
        return read_refusal(content, task)
    if set(content) != {"reply", "arrays"}:
        names = ", ".join(sorted(ascii(name)[:40] for name in content)[:4]) or "none"
        raise MessageError(f"expected the records 'reply' and 'arrays', got {names}")
    reply = check_train_reply(content, task)
    record = content["arrays"]
    if not isinstance(record, ArrayRecord):
        raise MessageError(f"expected 'arrays' as ArrayRecord, got {type(record).__name__}")
    received = from_record(record, rules.manifest)
    if rules.verify_digest and arrays_digest(received) != reply.arrays_digest:
        raise MessageError("expected arrays of the digest that the reply names, got others")
    arrays = decode_update(received, rules.global_arrays, rules.encoding)
    _check_update(arrays, rules)
    return ValidReply(task.site, arrays, reply)


def check_train_reply(content: RecordDict, task: TrainTask) -> TrainReply:
    """The document of a reply, which answers this very task; or MessageError."""
    reply = decode(TrainReply, entry(content, "reply"))
    _check_answers(reply, task)
    _check_ledger(reply, task)
    return reply


def _miscounted(count: int, task: TrainTask) -> RejectedReply:
    if count == 0:
        return RejectedReply(task.site, "no-reply", "no reply before the deadline")
    return RejectedReply(
        task.site, "duplicate-reply", f"expected one reply, got {count}; all dropped"
    )


def _judge(
    message: Message, task: TrainTask, rules: ReplyRules
) -> ValidReply | SiteRefusal | RejectedReply:
    if message.has_error():
        return dropped(message.error, task.site)
    try:
        return validate_reply(message, task, rules)
    except MessageError as error:
        return RejectedReply(task.site, "invalid-reply", error.message)


def dropped(error: Error, site: str) -> RejectedReply:
    """What a site is dropped for that answers with an error."""
    reason = ascii(error.reason or "")[1:-1][:200]
    if error.code == REPLY_REJECTED:  # the site would send the like again
        return RejectedReply(site, "invalid-reply", reason)
    return RejectedReply(site, "client-error", f"the client failed: {reason}")


def read_refusal(content: RecordDict, task: TrainTask | AuditOrder) -> SiteRefusal:
    """A site's no to this very task; or MessageError."""
    refusal = decode(Refusal, entry(content, "refusal"))
    expected = (task.run_id, task.site)
    if (refusal.run_id, refusal.site) != expected or refusal.server_round not in (
        0,
        task.server_round,
    ):
        raise MessageError(
            f"expected a refusal of round {task.server_round} by {task.site}, "
            f"got one of round {refusal.server_round} by {refusal.site}"
        )
    return SiteRefusal(task.site, refusal.code, refusal.message, refusal.hint)


def entry(content: RecordDict, name: str) -> object:
    """The one entry of a record of the same name; or MessageError."""
    record = content[name]
    if not isinstance(record, ConfigRecord) or set(record) != {name}:
        raise MessageError(f"expected {name!r} as a ConfigRecord with the one entry {name!r}")
    return record[name]


def _check_answers(reply: TrainReply, task: TrainTask) -> None:
    for name in ("run_id", "server_round", "attempt", "site", "task_digest", "num_examples"):
        expected, got = getattr(task, name), getattr(reply, name)
        if expected != got:
            raise MessageError(f"expected a reply with {name} {expected}, got {got}")


def _check_ledger(reply: TrainReply, task: TrainTask) -> None:
    """The coordinator is a witness of the ledger: it never becomes shorter."""
    if reply.spent.private and reply.spent.epsilon is None:
        raise MessageError("expected an epsilon from a ledger that is private, got none")
    witness, head = task.ledger_witness, reply.ledger_head
    if witness is None:
        return
    shorter = head.sequence < witness.sequence
    if shorter or (head.sequence == witness.sequence and head.digest != witness.digest):
        raise MessageError(
            f"expected a ledger that continues its entry {witness.sequence}, "
            f"got another history of {head.sequence} entries"
        )


def _check_update(arrays: Fp32Arrays, rules: ReplyRules) -> None:
    if rules.max_update_norm is None:
        _check_sizes(arrays, _LARGEST)
        return
    norm = difference_norm(arrays, rules.global_arrays)
    limit = min(rules.max_update_norm, _LARGEST)
    if not norm <= limit:  # nor is NaN, which one weight that is not finite makes of the norm
        _check_sizes(arrays, math.inf)
        raise MessageError(f"expected an update of norm at most {limit:g}, got {norm:.4g}")


def _check_sizes(arrays: Fp32Arrays, limit: float) -> None:
    for name, array in arrays.items():
        largest = _largest(array)
        if not math.isfinite(largest):
            raise MessageError(f"expected finite weights, got NaN or infinity in {name}")
        if largest > limit:
            raise MessageError(f"expected weights of at most {limit:g}, got larger ones: {name}")


def _largest(array: npt.NDArray[np.float32]) -> float:
    """The largest magnitude; NaN where any element is: then it is both smallest and largest."""
    if not array.size:
        return 0.0
    low, high = -float(array.min()), float(array.max())
    return high if high > low else low
