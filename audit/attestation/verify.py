"""Checks an audit's folder offline: everything against the auditor's key and against each other.

1. The manifest: its signature, and each file's digest against it; no file is missing or added.
2. The report: schema, its one form, its signature, its auditor against the keys one trusts.
3. The receipt, the statement and the log: signatures, and that all are of this report and model.
4. The log: its lines, its checkpoint, the sites' signatures, their ledgers, and that the model is
   what the last round left.
5. The gates: those that the log's first line names, and none passed but by the report's results.
6. What people read: drawn from the report, where the version that drew it is the one installed.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from audit.attestation.auditor import check_signer
from audit.attestation.bundle import (
    FILES,
    LOG_FILE,
    MANIFEST_FILE,
    RECEIPT_FILE,
    REPORT_FILE,
    SIGNED_LOG,
    STATEMENT_FILE,
    Manifest,
    parse_manifest,
)
from audit.attestation.consistency import (
    check_beginning,
    check_conclusion,
    check_forms,
    check_receipt,
    check_statement,
)
from audit.attestation.dsse import open_statement
from audit.attestation.receipt import Receipt, parse_receipt
from audit.attestation.run_log import parse_signed_log
from audit.report.document import Report, parse_report, verify_report
from core.digests import sha256_hex
from core.errors import AttestationError, LogTamperedError, SignerError
from core.log_messages import SignedLog
from core.messages import LedgerHead
from core.run_record import RunRecord
from privacy.identities.clock import read_timestamp
from privacy.transparency_log import ledger_heads, log_lines, verify_log

MAX_FILE_BYTES: Final = 256 * 1024 * 1024


@dataclass(frozen=True)
class VerifiedAudit:
    """What an audit's folder says, all of it checked."""

    report: Report
    receipt: Receipt
    statement: Mapping[str, Any]
    log_size: int
    """Lines of the run's log."""
    cosigned: Mapping[str, int]
    """For each site that signed the log: up to which line."""


def verify_audit(
    folder: Path,
    *,
    trusted: Collection[str],
    at: datetime,
    site_keys: Mapping[str, str] | None = None,
) -> VerifiedAudit:
    """Checks an audit's folder.

    **Guarantees**: Returns only where every file is, byte for byte, what the auditor signed; that
    auditor's key is trusted and valid both now and when the report was issued; the log is whole,
    unforked and signed by its key and, where there are cosignatures, by the sites; the model is the
    one that the log's last round left, the configuration, seed and gates those that its first line
    names; and receipt, statement, verdict and gates follow from the report's results. Reads nothing
    outside the folder. Whether the results are true is the auditor's word.

    Args:
        folder: What ``audit run`` wrote.
        trusted: Auditors' public keys, from somewhere else than the folder.
        at: Now, with its zone.
        site_keys: Ledger keys of sites that are known from elsewhere; those of all others are
            taken as the auditor states them.

    Raises:
        SignerError: The auditor's key is unknown, expired or not yet valid.
        LogTamperedError: The log was changed, cut, forked, or is not a site's that signed it.
        AttestationError: Anything else is not what was signed.
    """
    manifest, files = _read_files(folder)
    report = parse_report(files[REPORT_FILE])
    auditor = report.auditor
    if manifest.public_key != auditor.public_key or manifest.run_id != report.identity.run_id:
        raise AttestationError("expected a manifest by the report's auditor, of its run")
    check_signer(auditor, trusted, at)
    if read_timestamp(report.issued) > at:
        raise SignerError(
            f"expected a report that was issued already, got one of {report.issued}",
            hint="check this machine's clock",
        )
    check_signer(auditor, trusted, read_timestamp(report.issued))
    verify_report(report)
    receipt = parse_receipt(files[RECEIPT_FILE])
    check_receipt(receipt, report, sha256_hex(files[REPORT_FILE]))
    statement = open_statement(files[STATEMENT_FILE], auditor.public_key)
    check_statement(statement, report, files[REPORT_FILE])
    check_conclusion(report)
    log = parse_signed_log(files[SIGNED_LOG])
    if log != receipt.log:
        raise LogTamperedError("expected the signed log that the receipt names, got another")
    lines = log_lines(files[LOG_FILE])
    verify_log(log, lines, report.identity.run_id)
    _check_sites(receipt, log, lines, site_keys or {})
    _check_model(report, lines)
    check_beginning(report, lines)
    check_forms(report, files)
    return VerifiedAudit(
        report=report,
        receipt=receipt,
        statement=statement,
        log_size=len(lines),
        cosigned={item.body.site: item.body.size for item in log.cosignatures},
    )


def _read_files(folder: Path) -> tuple[Manifest, dict[str, bytes]]:
    try:
        found = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise AttestationError(
            f"expected an audit's folder at {folder}, got: {error.strerror}"
        ) from error
    expected = FILES | {MANIFEST_FILE}
    if found != expected:
        missing, more = sorted(expected - found), sorted(found - expected)
        raise AttestationError(
            f"expected the files of an audit in {folder}, got {missing} missing and {more!a} more",
            hint="keep the folder as it was written; other files belong elsewhere",
        )
    manifest = parse_manifest(_read(folder / MANIFEST_FILE))
    files = {}
    for item in manifest.files:
        files[item.name] = _read(folder / item.name)
        digest = sha256_hex(files[item.name])
        if digest != item.sha256:
            raise AttestationError(
                f"expected {item.name} as the auditor signed it, got another content",
                hint="ask the auditor for the original",
            )
    return manifest, files


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise AttestationError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise AttestationError(f"expected {path.name} of at most {MAX_FILE_BYTES} bytes, got more")
    return data


def _check_sites(
    receipt: Receipt, log: SignedLog, lines: Sequence[bytes], known: Mapping[str, str]
) -> None:
    """That each ledger is the known one, and no shorter than the log saw it."""
    keys = [(item.body.site, item.public_key) for item in log.cosignatures]
    ledgers = {site.site: site.ledger for site in receipt.sites if site.ledger is not None}
    keys += [(site, proof.public_key) for site, proof in ledgers.items()]
    for site, key in keys:
        if known.get(site, key) != key:
            raise LogTamperedError(
                f"expected the ledger key {known[site][:16]}... of site {site}, got {key[:16]}...",
                hint="someone else signed in this site's name",
            )
    last: dict[str, LedgerHead] = {}
    for line in lines:
        last |= ledger_heads(line)
    for site, proof in ledgers.items():
        seen = last.get(site)
        if seen is None:
            continue
        if proof.head.sequence < seen.sequence or (
            proof.head.sequence == seen.sequence and proof.head != seen
        ):
            raise LogTamperedError(
                f"expected a ledger of site {site} that continues what the log saw, got another"
            )


def _check_model(report: Report, lines: Sequence[bytes]) -> None:
    try:
        digests = [
            line["weights_digest"] for line in RunRecord({}, [json.loads(x) for x in lines]).rounds
        ]
    except (KeyError, TypeError) as error:
        raise LogTamperedError("expected rounds in the log, got other lines") from error
    if digests[-1:] != [report.identity.model_digest]:
        raise LogTamperedError("expected the model that the log's last round left, got another")
