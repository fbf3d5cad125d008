"""A run's log: its holder signs how long it is and its root, and the sites sign that in turn.

The leaves are the lines of the run's record. Each round's line names the head of every site's
ledger, and each site's ledger says which root of the log the site has seen: so neither side can
rewrite its past without the other's showing it. No IO.

Limits: whoever holds the log key can write another past from the last checkpoint that a site
signed. A holder of it and of every site's key can write any.
"""

import json
from collections.abc import Sequence
from typing import Final

from core.digests import json_digest
from core.errors import IdentityError, LogTamperedError, SiteKeyError
from core.log_messages import Checkpoint, Cosignature, CosignBody, LogLine, SignedLog, WitnessOrder
from core.messages import LedgerHead
from privacy.ledger_entries import Entry
from privacy.merkle_tree import (
    EMPTY_ROOT,
    GrowingTree,
    ProvingTree,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from privacy.signing import SiteKey, sign_document, verify_document, verify_signature

_PURPOSE: Final = "log-checkpoint"
_ENTRY_PURPOSE: Final = "ledger-entry"
_NO_SIGNATURE: Final = "0" * 128


def sign_checkpoint(key: SiteKey, run_id: str, size: int, root: bytes) -> Checkpoint:
    """The holder's signature over a log's length and root.

    Args:
        key: The run's log key.
        run_id: The run.
        size: How many lines.
        root: The root over them.
    """
    unsigned = Checkpoint(run_id=run_id, size=size, root=root.hex(), signature=_NO_SIGNATURE)
    return unsigned.model_copy(update={"signature": sign_document(key, _PURPOSE, unsigned)})


def verify_checkpoint(checkpoint: Checkpoint, log_key: str, run_id: str) -> None:
    """Checks a checkpoint's signature and that it is this run's.

    Raises:
        LogTamperedError: It is not.
    """
    if checkpoint.run_id != run_id:
        raise LogTamperedError(
            f"expected a checkpoint of run {run_id}, got one of {checkpoint.run_id}"
        )
    try:
        verify_document(log_key, _PURPOSE, checkpoint)
    except IdentityError as error:
        raise LogTamperedError(
            f"expected a checkpoint signed with the log key of run {run_id}: {error.message}"
        ) from error


def verify_lines(lines: Sequence[bytes], checkpoint: Checkpoint, log_key: str, run_id: str) -> None:
    """Checks that lines are a log's, or begin as it does.

    **Guarantees**: Returns only where the first ``checkpoint.size`` lines are, byte for byte and in
    this order, those that the log's holder signed, or SHA-256 has a collision.

    Raises:
        LogTamperedError: They are fewer, or others.
    """
    verify_checkpoint(checkpoint, log_key, run_id)
    if len(lines) < checkpoint.size:
        raise LogTamperedError(
            f"expected the {checkpoint.size} lines of the log that were signed, got {len(lines)}",
            hint="lines at the end are missing: restore the newest copy of the record",
        )
    tree = GrowingTree(leaf_hash(line) for line in lines[: checkpoint.size])
    if tree.root.hex() != checkpoint.root:
        raise LogTamperedError(
            f"expected the {checkpoint.size} lines of the log as they were signed, got others",
            hint="a line was changed, exchanged or moved, or this is a fork of the log",
        )


def log_lines(data: bytes) -> list[bytes]:
    """The leaves of a log, from its file.

    Raises:
        LogTamperedError: It does not end with a whole line.
    """
    *lines, rest = data.split(b"\n")
    if rest:
        raise LogTamperedError("expected a log that ends with a whole line, got a torn one")
    return lines


def ledger_heads(line: bytes) -> dict[str, LedgerHead]:
    """The heads of the sites' ledgers that a line of the record names.

    Raises:
        LogTamperedError: It is not a line of a record.
    """
    try:
        document = json.loads(line.decode("ascii"))
        if not isinstance(document["kind"], str):
            raise TypeError("a line's kind is a text")
        if document["kind"] != "round":
            return {}
        heads = document.get("ledger_heads", {})
        return {site: LedgerHead.model_validate(head) for site, head in heads.items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise LogTamperedError("expected a line of a run's record, got something else") from error


def check_order(
    order: WitnessOrder, known: CosignBody | None, heads: Sequence[LedgerHead]
) -> CosignBody:
    """What a site checks before it signs a checkpoint.

    **Guarantees**: Returns only where the log's key is the one that the site pinned, the tree
    continues the one that the site signed last, every line shown is in it, none came before, and
    each names a head that the site's ledger had.

    Args:
        order: What is asked.
        known: What the site signed last of this run; ``None`` for nothing.
        heads: The site's ledger, as the heads after each of its entries.

    Returns:
        What the site's ledger is to say.

    Raises:
        LogTamperedError: One of these does not hold.
    """
    checkpoint = order.checkpoint
    if known is not None and order.log_key != known.log_key:
        raise LogTamperedError(
            f"expected the log key {known.log_key[:16]}... of run {known.run_id}, got another",
            hint="two logs of one run are shown: ask the coordinator's people",
        )
    verify_checkpoint(checkpoint, order.log_key, checkpoint.run_id)
    since, since_root = (0, EMPTY_ROOT.hex()) if known is None else (known.size, known.root)
    if order.since != since:
        raise LogTamperedError(f"expected an order that continues {since} lines, got {order.since}")
    root = bytes.fromhex(checkpoint.root)
    verify_consistency(
        since, bytes.fromhex(since_root), checkpoint.size, root, _hashes(order.consistency)
    )
    next_index = since
    for item in order.lines:
        if item.index < next_index:
            raise LogTamperedError(f"expected lines from {next_index} in order, got {item.index}")
        next_index = item.index + 1
        leaf = leaf_hash(item.line.encode())
        verify_inclusion(leaf, item.index, checkpoint.size, _hashes(item.proof), root)
        _check_head(item, order.site, heads)
    return CosignBody(
        site=order.site,
        run_id=checkpoint.run_id,
        log_key=order.log_key,
        size=checkpoint.size,
        root=checkpoint.root,
        lines=(0 if known is None else known.lines) + len(order.lines),
    )


def cosignature_of(entry: Entry, public_key: str) -> Cosignature:
    """What a ledger's ``cosign`` entry shows to others."""
    return Cosignature(
        public_key=public_key,
        sequence=entry.sequence,
        time=entry.time,
        body=CosignBody.model_validate(entry.body),
        previous=entry.previous,
        signature=entry.signature,
    )


def verify_cosignature(cosignature: Cosignature) -> None:
    """Checks that the ledger key that a cosignature names has signed it.

    Deliberately not checked: whose key that is.

    Raises:
        LogTamperedError: It has not.
    """
    digest = cosignature_head(cosignature).digest
    try:
        verify_signature(
            cosignature.public_key, _ENTRY_PURPOSE, bytes.fromhex(digest), cosignature.signature
        )
    except SiteKeyError as error:
        raise LogTamperedError(
            f"expected a cosignature of site {cosignature.body.site}: {error.message}"
        ) from error


def cosignature_head(cosignature: Cosignature) -> LedgerHead:
    """The head of the site's ledger with this entry as its last."""
    digest = json_digest(
        {
            "sequence": cosignature.sequence,
            "time": cosignature.time,
            "kind": "cosign",
            "body": cosignature.body.model_dump(mode="json"),
            "previous": cosignature.previous,
        }
    )
    return LedgerHead(sequence=cosignature.sequence, digest=digest)


def verify_log(log: SignedLog, lines: Sequence[bytes], run_id: str) -> None:
    """Checks a whole log, its checkpoint and its cosignatures.

    **Guarantees**: Returns only where the lines are, byte for byte, all those that the holder
    signed, every cosignature is by the key that it names and over a root of this very log, and
    each site has checked every line up to there that names it and every ledger head in them that
    the log names was before the cosignature's place in the ledger.

    Raises:
        LogTamperedError: One of these does not hold.
    """
    verify_lines(lines, log.checkpoint, log.log_key, run_id)
    if len(lines) != log.checkpoint.size:
        raise LogTamperedError(
            f"expected the {log.checkpoint.size} lines that were signed, got {len(lines)}",
            hint="lines were added after the last checkpoint",
        )
    sites = [item.body.site for item in log.cosignatures]
    if sites != sorted(set(sites)):
        raise LogTamperedError("expected one cosignature a site, in the order of their names")
    if log.cosignatures:
        tree = ProvingTree([leaf_hash(line) for line in lines])
        heads = [ledger_heads(line) for line in lines]
        for item in log.cosignatures:
            verify_cosignature(item)
            if (item.body.run_id, item.body.log_key) != (run_id, log.log_key):
                raise LogTamperedError(
                    f"expected a cosignature of site {item.body.site} of this log, "
                    "got one of another"
                )
            _check_covered(item, tree, heads)


def witness_order(
    lines: Sequence[bytes],
    named: Sequence[int],
    tree: ProvingTree,
    checkpoint: Checkpoint,
    *,
    log_key: str,
    site: str,
    since: int,
) -> WitnessOrder:
    """What a site is shown so that it can sign a checkpoint.

    Args:
        lines: The log's lines.
        named: Which lines from ``since`` on name the site.
        tree: The tree over the lines.
        checkpoint: What is to be signed.
        log_key: The run's log key.
        site: The site.
        since: The size that the site signed last; 0 for none.
    """
    shown = [
        LogLine(
            index=index,
            line=lines[index].decode("ascii"),
            proof=_hex(tree.inclusion_proof(index, checkpoint.size)),
        )
        for index in named
    ]
    return WitnessOrder(
        site=site,
        log_key=log_key,
        checkpoint=checkpoint,
        since=since,
        consistency=_hex(tree.consistency_proof(since, checkpoint.size)),
        lines=tuple(shown),
    )


def _check_covered(
    item: Cosignature, tree: ProvingTree, heads: Sequence[dict[str, LedgerHead]]
) -> None:
    """Whether a cosignature is of this log, and its site saw all that concerns it."""
    body = item.body
    if body.size > tree.size or tree.root(body.size).hex() != body.root:
        raise LogTamperedError(
            f"expected the log that site {body.site} signed, got another",
            hint="the site was shown a fork of this log, or lines of this one are missing",
        )
    named = [line[body.site] for line in heads[: body.size] if body.site in line]
    if len(named) != body.lines:
        raise LogTamperedError(
            f"expected {len(named)} lines that site {body.site} checked, got {body.lines}",
            hint="lines that name the site were kept from it",
        )
    if any(head.sequence >= item.sequence for head in named):
        raise LogTamperedError(
            f"expected ledger heads of site {body.site} from before its cosignature"
        )


def _check_head(item: LogLine, site: str, heads: Sequence[LedgerHead]) -> None:
    named = ledger_heads(item.line.encode()).get(site)
    if named is None:
        raise LogTamperedError(
            f"expected lines that name {site}, got line {item.index} that does not"
        )
    if not 1 <= named.sequence <= len(heads) or heads[named.sequence - 1] != named:
        raise LogTamperedError(
            f"expected entry {named.sequence} of the ledger of {site} in line {item.index}, "
            "got one that the ledger does not have",
            hint="the run's log says of this site what its ledger does not",
        )


def _hashes(proof: Sequence[str]) -> list[bytes]:
    return [bytes.fromhex(item) for item in proof]


def _hex(proof: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(item.hex() for item in proof)
