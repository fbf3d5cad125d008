"""What is signed of a log, under a key that everyone knows: the form is a promise."""

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.attestation.dsse import seal_statement
from core.log_messages import CosignBody
from core.messages import LedgerHead, wire_form
from privacy.ledger_entries import next_entry
from privacy.merkle_tree import ProvingTree, leaf_hash
from privacy.signing import SiteKey
from privacy.transparency_log import cosignature_of, sign_checkpoint, witness_order
from tests.support.run_logs import RUN, round_line

TIME = "2026-01-31T12:00:00.000000Z"


def golden_log() -> dict[str, Any]:
    """A log of three lines: its checkpoint, what a site is shown, what it signs; an envelope."""
    key = SiteKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    site = SiteKey(Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))
    opening = {"schema_version": 1, "site": "north", "public_key": site.public_hex}
    first = next_entry(None, "open", opening, time=TIME, key=site)
    lines = [round_line(number, {"north": first.head}) for number in (1, 2, 3)]
    tree = ProvingTree([leaf_hash(line) for line in lines])
    checkpoint = sign_checkpoint(key, RUN, 3, tree.root(3))
    order = witness_order(
        lines, [2], tree, checkpoint, log_key=key.public_hex, site="north", since=2
    )
    body = CosignBody(
        site="north", run_id=RUN, log_key=key.public_hex, size=3, root=checkpoint.root, lines=3
    )
    entry = next_entry(first, "cosign", body.model_dump(mode="json"), time=TIME, key=site)
    return {
        "lines": [line.decode() for line in lines],
        "order": wire_form(order),
        "head": wire_form(LedgerHead(sequence=2, digest=entry.digest)),
        "cosignature": wire_form(cosignature_of(entry, site.public_hex)),
        "envelope": seal_statement({"_type": "https://in-toto.io/Statement/v1"}, key).decode(),
    }
