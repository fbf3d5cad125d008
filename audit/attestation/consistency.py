"""Whether the documents of an audit say the same: one that signs them all may still contradict
himself, and people read the page while machines read the statement."""

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, Final

from pydantic import ValidationError

from audit.attestation.dsse import predicate_of
from audit.attestation.receipt import Receipt
from audit.gates import held
from audit.report.conclusion import conclude
from audit.report.document import Report, SitePrivacy
from audit.report.writing import report_files
from core.audit_seed import AuditSeed
from core.config_sections import GatesSection
from core.errors import AttestationError, AuditError, LogTamperedError
from core.run_record import RunRecord

_TOOL: Final = "cloister"


def check_receipt(receipt: Receipt, report: Report, digest: str) -> None:
    """That a receipt is of this report, and says of it what it says itself.

    Raises:
        AttestationError: It does not.
    """
    identity, privacy = report.identity, report.privacy
    for name, expected, found in (
        ("report", digest, receipt.report_digest),
        ("auditor", report.auditor, receipt.auditor),
        ("time", report.issued, receipt.issued),
        ("run", identity.run_id, receipt.run_id),
        ("federation", identity.federation, receipt.federation),
        ("model", identity.model_digest, receipt.model_digest),
        ("mode", privacy.mode, receipt.mode),
        ("unit", privacy.unit, receipt.unit),
        ("neighbouring relation", privacy.neighbouring, receipt.neighbouring),
        ("gates", report.gates, receipt.gates),
        ("sites", [_spent(site) for site in _by_name(privacy.sites)], _receipted(receipt)),
    ):
        if expected != found:
            raise AttestationError(f"expected the receipt's {name} as in the report, got another")


def check_statement(statement: Mapping[str, Any], report: Report, report_json: bytes) -> None:
    """That a statement is about this report's model, and says what the report says.

    Raises:
        AttestationError: It does not.
    """
    try:
        weights = [
            item["digest"]["cloisterArraysSha256"]
            for item in statement["subject"]
            if item["name"] == "weights"
        ]
        predicate = statement["predicate"]
    except (KeyError, TypeError) as error:
        raise AttestationError("expected a statement about a report and its model") from error
    if weights != [report.identity.model_digest]:
        raise AttestationError("expected a statement about the report's model, got another's")
    if predicate != predicate_of(report, report_json):
        raise AttestationError("expected a statement of what this report says, got another")


def check_conclusion(report: Report) -> None:
    """That the first page's verdict follows from the tests and gates.

    Raises:
        AttestationError: It does not.
    """
    found = conclude(report.tests, report.gates, report.privacy, report.not_run).verdict
    if found is not report.conclusion.verdict:
        raise AttestationError(
            f"expected the verdict {found}, which follows from the report's tests and gates, "
            f"got {report.conclusion.verdict}"
        )


def check_beginning(report: Report, lines: Sequence[bytes]) -> None:
    """That the report is held to what its run began with: configuration, seed and gates.

    **Guarantees**: Returns only where the report has exactly the gates that the log's first line
    names, and calls none of them passed that does not follow from the results in the report.

    Raises:
        LogTamperedError: The log does not begin so, or with another configuration or seed.
        AttestationError: The gates are others, or one is called passed that is not.
    """
    beginning = RunRecord({}, [json.loads(line) for line in lines[:1]]).beginning
    identity = report.identity
    for name, found in (
        ("config_digest", identity.config_digest),
        ("task_digest", identity.task_digest),
        ("audit_commitment", identity.audit_commitment),
    ):
        if beginning.get(name) != found:
            raise LogTamperedError(f"expected a log that begins with the report's {name}")
    if AuditSeed(bytes.fromhex(identity.audit_seed)).commitment != identity.audit_commitment:
        raise AttestationError("expected the seed that the run committed to, got another")
    try:
        section = GatesSection.model_validate(beginning.get("gates"))
        tiers = {test.result.test: test.tier for test in report.tests}
        gates = held(section, [test.result for test in report.tests], tiers)
    except (ValidationError, AuditError) as error:
        raise LogTamperedError("expected a log that begins with the run's gates") from error
    if [(gate.name, gate.limit) for gate in report.gates] != [(g.name, g.limit) for g in gates]:
        raise AttestationError("expected the gates that the run began with, got others")
    for claimed, gate in zip(report.gates, gates, strict=True):
        if claimed.passed and not gate.passed:
            raise AttestationError(
                f"expected the gate {gate.name} to fail by the report's results, got one that is "
                "said to have passed"
            )


def check_forms(report: Report, files: Mapping[str, bytes]) -> None:
    """That what people read is drawn from the report's data; told by the version that drew it.

    Raises:
        AttestationError: A form says something else.
    """
    if report.tool_version != metadata.version(_TOOL):
        return
    for name, content in report_files(report).items():
        if files[name] != content:
            raise AttestationError(
                f"expected {name} as it is drawn from report.json, got another",
                hint="believe report.json alone, and ask the auditor",
            )


def _by_name(sites: Sequence[SitePrivacy]) -> list[SitePrivacy]:
    return sorted(sites, key=lambda site: site.site)


def _spent(site: SitePrivacy) -> tuple[object, ...]:
    return (site.site, site.private, site.epsilon, site.delta, site.origin, site.spending)


def _receipted(receipt: Receipt) -> list[tuple[object, ...]]:
    return [(s.site, s.private, s.epsilon, s.delta, s.origin, s.events) for s in receipt.sites]
