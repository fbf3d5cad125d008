"""From a simulated run to an audit's folder that anyone can verify, over the real files of both."""

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from audit.attestation.bundle import attestation_files
from audit.attestation.evidence import gather_evidence
from audit.attestation.run_log import cosign_all, read_log
from audit.attestation.verify import verify_audit
from audit.report.build import build_report
from audit.report.document import sign_report
from audit.report.writing import report_files, write_report
from audit.subject import open_subject
from audit.suite import SuiteOutcome
from core.audit_seed import AuditSeed
from core.config import FederationConfig, config_digest
from core.config_files import parse_config
from core.digests import canonical_json
from core.errors import AttestationError, LogTamperedError, SiteKeyError, SubjectError
from core.run_record import beginning_of
from privacy.ledger import Ledger
from privacy.signing import SiteKey
from tests.support.audited import simulated_run
from tests.support.reports import ISSUED, auditor_of

KEY = SiteKey.generate()
NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_run(tmp_path_factory.mktemp("simulated"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def sign_by_sites(run: Path) -> None:
    with ExitStack() as stack:
        paths = {path.parent.name: path for path in run.glob("sites/*/ledger.sqlite")}
        assert paths
        opened = {n: stack.enter_context(Ledger.open(p, site=n)) for n, p in paths.items()}
        cosign_all(run, opened)


def audit(run: Path, folder: Path) -> Path:
    subject = open_subject(run)
    report = sign_report(
        build_report(
            subject, SuiteOutcome("quick", (), ()), auditor_of(KEY), issued=ISSUED, cards=()
        ),
        KEY,
    )
    added = attestation_files(report, report_files(report), gather_evidence(subject), KEY)
    write_report(folder, report, added)
    return folder


def test_a_simulated_run_is_signed_by_its_sites_and_attested(run: Path, tmp_path: Path) -> None:
    sign_by_sites(run)
    sign_by_sites(run)
    found = verify_audit(audit(run, tmp_path / "audit"), trusted={KEY.public_hex}, at=NOW)
    assert set(found.cosigned) == {path.name for path in (run / "sites").iterdir()}
    assert set(found.cosigned.values()) == {found.log_size}
    assert {site.num_events for site in found.receipt.sites} == {3}


def test_a_run_that_no_site_signed_is_attested_as_that(run: Path, tmp_path: Path) -> None:
    found = verify_audit(audit(run, tmp_path / "audit"), trusted={KEY.public_hex}, at=NOW)
    assert found.cosigned == {}


def test_a_record_that_was_changed_after_the_run_is_refused(run: Path) -> None:
    path = run / "record.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for forged in (lines[:-1], lines[1:], [*lines, lines[-1]]):
        path.write_bytes(b"".join(forged))
        with pytest.raises(LogTamperedError):
            read_log(run)
        # Not one site is asked to sign it.
        with pytest.raises(LogTamperedError):
            sign_by_sites(run)
    path.write_bytes(b"".join(lines))
    sign_by_sites(run)


def test_without_its_log_key_nobody_asks_the_sites(run: Path) -> None:
    (run / "log.key").unlink()
    with pytest.raises(SiteKeyError):
        sign_by_sites(run)
    (run / "log.key").touch(0o600)
    (run / "log.key").write_bytes(KEY.private_pem())
    with pytest.raises(AttestationError, match="the log key of run"):
        sign_by_sites(run)


def test_a_run_without_a_log_is_named(run: Path) -> None:
    header = (run / "run.json").read_text()
    (run / "run.json").write_text(header.replace('"log_key"', '"other"'))
    with pytest.raises(AttestationError, match="signed log"):
        read_log(run)


@pytest.mark.parametrize("name", ["log.checkpoint", "log.signed"])
def test_a_damaged_document_of_the_log_is_named(run: Path, name: str) -> None:
    sign_by_sites(run)
    data = (run / name).read_bytes()
    for damaged in (b"", data[:-1], data.replace(b'"root":"', b'"root":"0', 1)):
        (run / name).write_bytes(damaged)
        with pytest.raises(AttestationError):
            read_log(run)


def edited(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def test_gates_chosen_after_the_run_are_refused(run: Path) -> None:
    """With a digest that fits them, and without."""

    def no_gates(header: Any) -> None:
        header["config"]["audit"]["gates"]["conformance"] = False
        config = parse_config(FederationConfig, header["config"], origin="a test")
        header["config_digest"] = config_digest(config)

    edited(run / "run.json", no_gates)
    with pytest.raises(SubjectError, match=r"run\.json and terms\.json"):
        open_subject(run)


def test_a_seed_chosen_after_the_run_is_refused(run: Path) -> None:
    (run / "audit.seed").unlink()
    commitment = AuditSeed.of_folder(run).commitment
    edited(run / "run.json", lambda header: header.update(audit_commitment=commitment))
    with pytest.raises(SubjectError, match=r"run\.json and terms\.json"):
        open_subject(run)


def test_a_site_left_out_of_the_terms_is_missed(run: Path) -> None:
    edited(run / "terms.json", lambda terms: terms.pop(min(terms)))
    with pytest.raises(SubjectError, match=r"run\.json and terms\.json"):
        open_subject(run)


def test_terms_with_other_constants_are_refused(run: Path) -> None:
    edited(run / "terms.json", lambda terms: terms[min(terms)].update(noise_multiplier=99.0))
    with pytest.raises(SubjectError, match=r"run\.json and terms\.json"):
        open_subject(run)


def test_a_first_line_written_anew_is_not_what_was_signed(run: Path) -> None:
    edited(run / "terms.json", lambda terms: terms[min(terms)].update(noise_multiplier=99.0))
    path = run / "record.jsonl"
    lines = path.read_bytes().splitlines()
    lines[0] = canonical_json({"kind": "begun", **beginning_of(run)})
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    open_subject(run)
    with pytest.raises(LogTamperedError):
        read_log(run)


def test_a_record_without_a_beginning_is_not_audited(run: Path) -> None:
    path = run / "record.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(SubjectError, match="older version"):
        open_subject(run)
