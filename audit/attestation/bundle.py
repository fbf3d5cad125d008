"""All files of an audit, and the manifest that binds them: each file's digest, signed."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field

from audit.attestation.cyclonedx import render_cyclonedx
from audit.attestation.dsse import seal_statement, statement_of
from audit.attestation.evidence import Evidence
from audit.attestation.model_card import render_model_card
from audit.attestation.receipt import make_receipt
from audit.report.document import Report
from core.config_sections import Digest, Section
from core.digests import sha256_hex
from core.errors import AttestationError, IdentityError, MessageError
from core.messages import RunId, WireMessage, decode, encode
from core.wire.documents import PublicKey, Signature
from privacy.signing import SiteKey, sign_document, verify_document

REPORT_FILE: Final = "report.json"
RECEIPT_FILE: Final = "receipt.json"
STATEMENT_FILE: Final = "attestation.json"
CARD_FILE: Final = "model-card.md"
BOM_FILE: Final = "cyclonedx.json"
LOG_FILE: Final = "log.jsonl"
SIGNED_LOG: Final = "log.checkpoint"
MANIFEST_FILE: Final = "manifest.json"
FILES: Final = frozenset(
    {
        REPORT_FILE,
        "report.html",
        "report.md",
        "junit.xml",
        RECEIPT_FILE,
        STATEMENT_FILE,
        CARD_FILE,
        BOM_FILE,
        LOG_FILE,
        SIGNED_LOG,
    }
)
"""Every file of an audit beside the manifest."""
_PURPOSE: Final = "audit-manifest"


class FileDigest(Section):
    """One file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
    sha256: Digest


class Manifest(WireMessage):
    """What belongs to an audit, byte for byte."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    kind: Literal["cloister-audit-manifest"] = "cloister-audit-manifest"
    run_id: RunId
    public_key: PublicKey
    """The auditor's."""
    files: Annotated[tuple[FileDigest, ...], Field(max_length=64)]
    """By name."""
    signature: Signature
    """The auditor's, over everything else."""


def attestation_files(
    report: Report, report_files: Mapping[str, bytes], evidence: Evidence, key: SiteKey
) -> dict[str, bytes]:
    """What is written beside the report, the signed manifest of all files among it.

    **Guarantees**: The same arguments give the same bytes.

    Args:
        report: The signed report.
        report_files: Its files, by name, as they are written.
        evidence: The log, the ledgers and the model's facts.
        key: The auditor's.

    Raises:
        AttestationError: The key is not the auditor's, or a file of the report is missing.
        LogTamperedError: A ledger is not what the report or the log says of it.
    """
    report_json = report_files[REPORT_FILE]
    receipt = make_receipt(report, report_json, evidence, key)
    statement = statement_of(report, report_json, evidence.model)
    added = {
        RECEIPT_FILE: encode(receipt),
        STATEMENT_FILE: seal_statement(statement, key),
        CARD_FILE: render_model_card(report, report_json, evidence.model).encode("utf-8"),
        BOM_FILE: render_cyclonedx(report, report_json, evidence.model),
        LOG_FILE: evidence.record,
        SIGNED_LOG: encode(evidence.log),
    }
    together = {**report_files, **added}
    if together.keys() != FILES:
        raise AttestationError(f"expected the files {sorted(FILES)}, got {sorted(together)}")
    unsigned = Manifest(
        run_id=report.identity.run_id,
        public_key=key.public_hex,
        files=tuple(
            FileDigest(name=name, sha256=sha256_hex(together[name])) for name in sorted(together)
        ),
        signature="0" * 128,
    )
    manifest = unsigned.model_copy(update={"signature": sign_document(key, _PURPOSE, unsigned)})
    return {**added, MANIFEST_FILE: encode(manifest)}


def parse_manifest(data: bytes) -> Manifest:
    """Reads a manifest and checks its signature; whose key it is, the caller checks.

    Raises:
        AttestationError: It is not one, not in its one form, not signed, or names other files.
    """
    try:
        manifest = decode(Manifest, data)
        if encode(manifest) != data:
            raise AttestationError("expected a manifest as it was written, got another form of it")
        verify_document(manifest.public_key, _PURPOSE, manifest)
    except (MessageError, IdentityError) as error:
        raise AttestationError(
            f"expected a signed manifest of an audit: {error.message}"
        ) from error
    if [item.name for item in manifest.files] != sorted(FILES):
        raise AttestationError("expected a manifest of all files of an audit, got one of others")
    return manifest
