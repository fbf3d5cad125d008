"""The privacy receipt of a release: what was spent, who signed for it, whether it may go out."""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import Field

from audit.attestation.auditor import Auditor
from audit.attestation.evidence import Evidence
from audit.gates import Gate
from audit.report.document import Report, SitePrivacy, Spending
from core.config_sections import Digest, Name, Section
from core.digests import sha256_hex
from core.errors import (
    AttestationError,
    IdentityError,
    LedgerTamperedError,
    LogTamperedError,
    MessageError,
)
from core.log_messages import Cosignature, SignedLog
from core.messages import LedgerHead, RunId, WireMessage, decode, encode
from core.wire.documents import PublicKey, Signature, Timestamp
from privacy.ledger_entries import Entry, verify_head
from privacy.signing import SiteKey, sign_document, verify_document
from privacy.transparency_log import cosignature_head

PURPOSE: Final = "privacy-receipt"
MAX_RECEIPT_BYTES: Final = 16 * 1024 * 1024


class LedgerProof(Section):
    """That a site's ledger had a head: signed with the ledger's key."""

    public_key: PublicKey
    """The ledger's key."""
    head: LedgerHead
    """Length and last hash."""
    signature: Signature
    """Of the entry that is the last."""


class SiteReceipt(Section):
    """What a release cost the records of one site."""

    site: Name
    private: bool
    epsilon: float | None
    """Over the ledger's whole life; ``None`` where nothing bounds it."""
    delta: float
    origin: Literal["ledger", "reply", "none"]
    """Recomputed from the ledger; as the site's last reply stated it; or unknown."""
    num_events: int | None = Field(ge=0)
    """Releases that this run cost; ``None`` where the ledger is not at hand."""
    events: tuple[Spending, ...]
    """All releases of the ledger's life, by mechanism; empty where it is not at hand."""
    ledger: LedgerProof | None
    """``None`` where the ledger is not at hand: the cosignature then stands for it."""


class Receipt(WireMessage):
    """One signed document for one release."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    kind: Literal["cloister-privacy-receipt"] = "cloister-privacy-receipt"
    issued: Timestamp
    auditor: Auditor
    """Who signs."""
    run_id: RunId
    federation: Name
    model_digest: Digest
    """Of the released weights."""
    mode: Annotated[str, Field(max_length=64)]
    """Of privacy."""
    unit: Annotated[str, Field(max_length=64)]
    """Whose presence is hidden."""
    neighbouring: Annotated[str, Field(max_length=64)]
    sites: tuple[SiteReceipt, ...]
    """By name."""
    log: SignedLog
    """The run's log: its root and the sites' signatures."""
    gates: tuple[Gate, ...]
    report_digest: Digest
    """SHA-256 of ``report.json``."""
    released: bool
    """True only where every gate passed."""
    signature: Signature
    """The auditor's, over everything else."""


def make_receipt(report: Report, report_json: bytes, evidence: Evidence, key: SiteKey) -> Receipt:
    """Signs the receipt of what a report is about.

    Args:
        report: The report.
        report_json: Its file, byte for byte.
        evidence: The log and the ledgers.
        key: The auditor's.

    Raises:
        AttestationError: The key is not the auditor's.
        LogTamperedError: A ledger is not what the report or the log says of it.
    """
    if key.public_hex != report.auditor.public_key:
        raise AttestationError("expected the key of the auditor that the report names, got another")
    heads = {site.site: site.ledger_head for site in report.identity.sites}
    privacy = report.privacy
    unsigned = Receipt(
        issued=report.issued,
        auditor=report.auditor,
        run_id=report.identity.run_id,
        federation=report.identity.federation,
        model_digest=report.identity.model_digest,
        mode=privacy.mode,
        unit=privacy.unit,
        neighbouring=privacy.neighbouring,
        sites=tuple(
            _site(site, report.identity.run_id, heads.get(site.site), evidence)
            for site in sorted(privacy.sites, key=lambda item: item.site)
        ),
        log=evidence.log,
        gates=report.gates,
        report_digest=sha256_hex(report_json),
        released=report.released,
        signature="0" * 128,
    )
    receipt = unsigned.model_copy(update={"signature": sign_document(key, PURPOSE, unsigned)})
    check_ledgers(receipt)
    return receipt


def parse_receipt(data: bytes) -> Receipt:
    """Reads ``receipt.json`` and checks its signature and what it says of itself.

    Deliberately not checked here: that its auditor is trusted.

    **Guarantees**: Only ``AttestationError`` escapes. What is returned has these very bytes, is
    signed by the auditor that it names, calls the model released only where every gate passed, and
    its ledgers and cosignatures fit each other.

    Raises:
        AttestationError: One of these does not hold.
    """
    try:
        receipt = decode(Receipt, data, max_bytes=MAX_RECEIPT_BYTES)
        if encode(receipt) != data:
            raise AttestationError("expected a receipt as it was written, got another form of it")
        verify_document(receipt.auditor.public_key, PURPOSE, receipt)
    except (MessageError, IdentityError) as error:
        raise AttestationError(
            f"expected the receipt that its auditor signed: {error.message}"
        ) from error
    if receipt.released != all(gate.passed for gate in receipt.gates):
        raise AttestationError("expected a release exactly where every gate passed, got another")
    check_ledgers(receipt)
    return receipt


def check_ledgers(receipt: Receipt) -> None:
    """Checks each site's ledger head, and that it and the site's cosignature are of one ledger.

    Raises:
        LogTamperedError: They are not.
    """
    cosignatures = {item.body.site: item for item in receipt.log.cosignatures}
    for site in receipt.sites:
        if site.ledger is not None:
            proof = site.ledger
            try:
                verify_head(proof.head, proof.signature, proof.public_key, site.site)
            except LedgerTamperedError as error:
                raise LogTamperedError(error.message) from error
            if site.site in cosignatures:
                _check_one_ledger(proof, cosignatures[site.site])


def _check_one_ledger(proof: LedgerProof, cosignature: Cosignature) -> None:
    signed = cosignature_head(cosignature)
    before = LedgerHead(sequence=signed.sequence - 1, digest=cosignature.previous)
    fork = any(
        proof.head.sequence == head.sequence and proof.head != head for head in (signed, before)
    )
    if proof.public_key != cosignature.public_key or fork:
        raise LogTamperedError(
            f"expected one ledger of site {cosignature.body.site}, got two",
            hint="the site's ledger was exchanged between its signature and the audit",
        )


def _site(
    privacy: SitePrivacy, run_id: str, head: LedgerHead | None, evidence: Evidence
) -> SiteReceipt:
    ledger = evidence.ledgers.get(privacy.site)
    debited = [row.releases for row in privacy.spending if row.run_id == run_id]
    return SiteReceipt(
        site=privacy.site,
        private=privacy.private,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        origin=privacy.origin,
        num_events=None if ledger is None else sum(debited),
        events=privacy.spending,
        ledger=None if ledger is None else _proof(privacy.site, ledger, head),
    )


def _proof(site: str, ledger: Sequence[Entry], head: LedgerHead | None) -> LedgerProof:
    for entry in ledger:
        if entry.head == head:
            key = str(ledger[0].body["public_key"])
            return LedgerProof(public_key=key, head=entry.head, signature=entry.signature)
    raise LogTamperedError(f"expected the ledger of {site} that the report names, got another")
