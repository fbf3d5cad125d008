"""The report as data: its JSON is the truth, every other form is drawn from it.

On the disk it is the wire form of a message: kebab-case keys, sorted, ASCII, signed without its
field ``signature``.
"""

import json
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from audit.attestation.auditor import Auditor
from audit.gates import Gate
from audit.verdicts import Figure, Suite, TestResult, Tier, Verdict
from core.config_sections import Digest, Name, Section
from core.errors import AttestationError, IdentityError, MessageError
from core.messages import LedgerHead, RunId, WireMessage, decode, wire_form
from core.wire.documents import Timestamp
from privacy.identities.clock import read_timestamp
from privacy.signing import SiteKey, sign_document, verify_document

SCHEMA_VERSION: Final = 1
PURPOSE: Final = "audit-report"
MAX_REPORT_BYTES: Final = 32 * 1024 * 1024
UNSIGNED: Final = "0" * 128

Slot = Annotated[str, Field(max_length=4000)]
Sentence = Annotated[str, Field(max_length=4000)]


class Version(Section):
    """One program."""

    name: str = Field(max_length=64)
    version: str = Field(max_length=64)


class SiteIdentity(Section):
    """One site, by what is public of it. There is no digest of its records: who knows all but one
    of them could test the last one against it."""

    site: Name
    num_examples: int = Field(ge=1)
    """Its public size."""
    ledger_head: LedgerHead | None
    """Length and last hash of its ledger; ``None`` where neither the ledger nor a reply is at
    hand."""
    records_at_hand: bool
    """Whether the audit looked at records; else the site counted them itself, or nobody did."""


class Identity(Section):
    """What was audited, by its digests."""

    run_id: RunId
    federation: Name
    task_digest: Digest
    config_digest: Digest
    model_digest: Digest
    """Of the released weights."""
    initial_digest: Digest | None
    """Of the weights before the first round."""
    holdout_digest: Digest | None
    """Of the public records; ``None`` where there are none at hand."""
    sites: tuple[SiteIdentity, ...]
    audit_commitment: Digest
    """SHA-256 of the audit's seed, as the run recorded it before its first round."""
    audit_seed: Digest
    """The seed itself, revealed: which records were held out and which canaries were there."""


class Conclusion(Section):
    """The first page."""

    verdict: Verdict
    """The worst of all tests and gates."""
    title: Sentence
    summary: tuple[Sentence, ...]
    """In plain words, worst first."""
    limits: tuple[Sentence, ...]
    """What the report does not show."""


class Spending(Section):
    """Releases of one kind from a site's records, with the same constants."""

    run_id: RunId
    kind: str = Field(max_length=64)
    """The mechanism."""
    private: bool
    releases: int = Field(ge=1)
    """How many were debited: rounds, or audits."""
    steps: int | None = None
    """T: steps of all of them together."""
    noise_multiplier: float | None = None
    """Sigma: noise over clip."""
    max_grad_norm: float | None = None
    """C: the clip."""
    sample_rate: float | None = None
    """q: chance of each record to be in a step."""
    scale: float | None = None
    """Of Laplace noise on counts."""


class SitePrivacy(Section):
    """What one site's records were promised, over the ledger's whole life."""

    site: Name
    private: bool
    epsilon: float | None
    """Claimed; ``None`` where nothing bounds it."""
    delta: float
    origin: Literal["ledger", "reply", "none"]
    """Recomputed from the site's ledger; as its last reply stated it; or unknown."""
    rdp: float | None = None
    """The same by a second, looser accountant."""
    prv: float | None = None
    """The DP-SGD steps by a third."""
    alarm: Sentence | None = None
    """Which accountants contradict each other."""
    best_guess: float = Field(ge=0.5, le=1)
    """How often one who must say whether a record was used is right at the most, where a coin is
    right half of the time: (exp(epsilon) + delta) / (1 + exp(epsilon))."""
    spending: tuple[Spending, ...]
    """What adds up to epsilon; empty where the ledger is not at hand."""


class PrivacyStatement(Section):
    """The statement of differential privacy."""

    mode: Literal["local", "distributed", "none"]
    private: bool
    """Whether every site's records were protected in all that their ledgers know of."""
    unit: str
    neighbouring: str
    secure_aggregation: bool
    trust: Sentence
    """Whom one must believe for it to hold."""
    odds: Sentence
    """What it means, in plain words."""
    sites: tuple[SitePrivacy, ...]
    figure: Figure | None
    """Claimed against proven epsilon."""


class TestRecord(Section):
    """A test, what it asked and what it found."""

    __test__ = False  # pytest: not a test case

    title: str
    question: str
    tier: Tier
    threat_model: str
    assumes: tuple[str, ...]
    result: TestResult


class Omission(Section):
    """A test that did not run."""

    test: str
    title: str
    reason: str


class Risk(Section):
    """A row for a data-protection impact assessment."""

    id: str
    risk: Sentence
    adversary: Sentence
    """Who could do it, and with what; or whom it meets."""
    severity: Literal["high", "medium", "low"]
    evidence: tuple[str, ...]
    """Ids of tests."""
    safeguard: Sentence
    """What stands against it."""
    open: Sentence
    """What is left to do or to accept."""
    decision: Slot = ""
    """For the controller to fill in."""


class Reproduction(Section):
    """How to do it again."""

    suite: Suite
    commands: tuple[str, ...]
    versions: tuple[Version, ...]
    note: Sentence


class VerdictChange(Section):
    """A test whose verdict is another, or that only one of two reports has."""

    test: str
    before: Verdict | None
    after: Verdict | None


class MeasureChange(Section):
    """A measure whose value is another, or that only one of two reports has."""

    test: str
    measure: str
    before: float | None
    after: float | None
    apart: bool
    """Whether both have intervals and these do not meet."""


class OtherChange(Section):
    """Something else that is not the same."""

    what: str
    before: str
    after: str


class Comparison(Section):
    """What changed since an earlier report."""

    previous_run: RunId
    previous_issued: Timestamp
    previous_digest: Digest
    """SHA-256 of the earlier report's file."""
    verdicts: tuple[VerdictChange, ...]
    measures: tuple[MeasureChange, ...]
    others: tuple[OtherChange, ...]


class Report(WireMessage):
    """All that an audit found."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of this schema."""
    kind: Literal["cloister-audit-report"] = "cloister-audit-report"
    issued: Timestamp
    """UTC, by the auditor's clock."""
    auditor: Auditor
    """The responsible person, who signs."""
    tool_version: str = Field(max_length=64)
    identity: Identity
    purpose: Slot = ""
    """What the model is for; for the controller to fill in."""
    legal_basis: Slot = ""
    """On what basis the records were used; for the controller to fill in."""
    conclusion: Conclusion
    gates: tuple[Gate, ...]
    privacy: PrivacyStatement
    tests: tuple[TestRecord, ...]
    """Worst first."""
    not_run: tuple[Omission, ...]
    risks: tuple[Risk, ...]
    reproduction: Reproduction
    changes: Comparison | None = None
    """Since the report before this one; ``None`` where none was given."""
    signature: str = Field(default=UNSIGNED, pattern=r"^[0-9a-f]{128}$")
    """The auditor's Ed25519 signature over everything else."""

    @property
    def released(self) -> bool:
        """Whether all gates passed."""
        return all(gate.passed for gate in self.gates)


def sign_report(report: Report, key: SiteKey) -> Report:
    """Signs a report with the key of the auditor that it names.

    Raises:
        AttestationError: It is another key, or the report was issued outside the key's time.
    """
    auditor = report.auditor
    if key.public_hex != auditor.public_key:
        raise AttestationError(
            f"expected the key {auditor.public_key[:16]}... that the report names, "
            f"got {key.public_hex[:16]}..."
        )
    if not _when(auditor.not_before) <= _when(report.issued) <= _when(auditor.not_after):
        raise AttestationError(
            f"expected a report issued between {auditor.not_before} and {auditor.not_after}, "
            f"got one of {report.issued}",
            hint="the auditor needs a key that is valid",
        )
    return report.model_copy(update={"signature": sign_document(key, PURPOSE, report)})


def verify_report(report: Report) -> None:
    """Checks the signature. Deliberately not checked here: that the auditor is trusted, which is
    ``check_signer``'s.

    **Guarantees**: Returns only where the key that the report names signed everything in it.

    Raises:
        AttestationError: Anything was changed, or it was never signed.
    """
    try:
        verify_document(report.auditor.public_key, PURPOSE, report)
    except IdentityError as error:
        raise AttestationError(
            "expected the report that its auditor signed, got one that was changed or not signed",
            hint="ask the auditor for the original",
        ) from error


def report_bytes(report: Report) -> bytes:
    """The file: one form only, so that equal reports are equal bytes."""
    form = wire_form(report)
    text = json.dumps(form, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


def parse_report(data: bytes) -> Report:
    """Reads what ``report_bytes`` wrote.

    **Guarantees**: Only ``AttestationError`` escapes, whatever the bytes are; what is returned has
    these very bytes.

    Raises:
        AttestationError: It is not a report of this version, or not in its one form.
    """
    try:
        report = decode(Report, data, max_bytes=MAX_REPORT_BYTES)
    except MessageError as error:
        raise AttestationError(
            f"expected an audit report of schema version {SCHEMA_VERSION}: {error.message}"
        ) from error
    if report_bytes(report) != data:
        raise AttestationError(
            "expected a report in the form in which it was written, got another spelling of it"
        )
    return report


def report_schema() -> dict[str, Any]:
    """JSON Schema of the file, for other tools."""
    schema = _kebab(Report.model_json_schema(mode="serialization"))
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Cloister audit report, schema version {SCHEMA_VERSION}",
    }
    return {**schema, **head}


def _kebab(value: Any) -> Any:
    """Property names as they stand in the file."""
    if isinstance(value, list):
        return [_kebab(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _kebab(item) for key, item in value.items()}
    if isinstance(found.get("properties"), dict):
        found["properties"] = {
            name.replace("_", "-"): item for name, item in found["properties"].items()
        }
    if isinstance(found.get("required"), list):
        found["required"] = [name.replace("_", "-") for name in found["required"]]
    return found


def _when(timestamp: str) -> datetime:
    return read_timestamp(timestamp)
