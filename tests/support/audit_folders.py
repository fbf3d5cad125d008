"""Audits' folders: a rich report and all that is signed beside it, on real ledgers and logs."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from audit.attestation.bundle import REPORT_FILE, attestation_files
from audit.attestation.evidence import Evidence, ModelFacts
from audit.report.document import Identity, Report, report_bytes, sign_report
from audit.report.writing import report_files
from core.digests import canonical_json
from core.messages import LedgerHead
from privacy.ledger import Ledger
from privacy.ledger_entries import Entry
from privacy.log_witnesses import LogHolder, co_sign, witness
from privacy.signing import SiteKey
from tests.support.reports import RUN, federation, rich_report
from tests.support.run_logs import debit

AT_HAND = ("lakeside", "mercy")


@dataclass(frozen=True)
class AuditedRun:
    """What an auditor has of a run, and the report on it."""

    key: SiteKey
    log_key: SiteKey
    report: Report
    evidence: Evidence
    drawn: Mapping[str, bytes]
    """The report's files; its pictures take longer than all else."""


def audited_run(folder: Path, key: SiteKey, *, rounds: int = 3) -> AuditedRun:
    """A run of some rounds at two sites, both of which signed its log."""
    log_key = SiteKey.generate()
    report = rich_report(key)
    with ExitStack() as stack:
        opened = {
            site: stack.enter_context(Ledger.open(folder / f"{site}.sqlite", site=site))
            for site in AT_HAND
        }
        record = _record(opened, report.identity, rounds)
        ask = {site: partial(witness, ledger) for site, ledger in opened.items()}
        log = co_sign(LogHolder(RUN, log_key, record), ask)
        ledgers = {site: ledger.entries() for site, ledger in opened.items()}
    evidence = Evidence(
        record=record,
        log=log,
        ledgers=ledgers,
        model=ModelFacts.of(federation(), _model(folder / "model")),
    )
    report = sign_report(_with_heads(report, ledgers), key)
    return AuditedRun(key, log_key, report, evidence, report_files(report))


def write_audit(folder: Path, run: AuditedRun) -> Path:
    """Writes the audit's folder; where the report is another than was drawn, the JSON alone is."""
    drawn = {**run.drawn, REPORT_FILE: report_bytes(run.report)}
    folder.mkdir(parents=True)
    for name, data in (drawn | attestation_files(run.report, drawn, run.evidence, run.key)).items():
        (folder / name).write_bytes(data)
    return folder


def _with_heads(report: Report, ledgers: Mapping[str, tuple[Entry, ...]]) -> Report:
    sites = tuple(
        site.model_copy(
            update={"ledger_head": ledgers[site.site][-1].head if site.site in ledgers else None}
        )
        for site in report.identity.sites
    )
    identity = report.identity.model_copy(update={"sites": sites})
    return report.model_copy(update={"identity": identity})


def _record(ledgers: Mapping[str, Ledger], identity: Identity, rounds: int) -> bytes:
    beginning = {
        "kind": "begun",
        "config_digest": identity.config_digest,
        "task_digest": identity.task_digest,
        "audit_commitment": identity.audit_commitment,
        "gates": federation().audit.gates.model_dump(mode="json"),
    }
    lines = [canonical_json(beginning)]
    for number in range(1, rounds + 1):
        heads: dict[str, LedgerHead] = {n: debit(le, number) for n, le in ledgers.items()}
        line = {
            "kind": "round",
            "server_round": number,
            "weights_digest": identity.model_digest if number == rounds else "0" * 64,
            "ledger_heads": {site: head.model_dump() for site, head in heads.items()},
        }
        lines.append(canonical_json(line))
    return b"".join(line + b"\n" for line in lines)


def _model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "manifest.json").write_bytes(b"{}")
    return folder
