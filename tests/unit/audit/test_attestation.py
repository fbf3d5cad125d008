import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.attestation.bundle import FILES, MANIFEST_FILE, attestation_files, parse_manifest
from audit.attestation.dsse import PAYLOAD_TYPE, open_statement, seal_statement
from audit.attestation.receipt import make_receipt, parse_receipt
from audit.attestation.verify import verify_audit
from audit.gates import Gate
from audit.report.document import TestRecord, parse_report, sign_report, verify_report
from audit.report.writing import report_files, write_report
from audit.verdicts import TestResult, Verdict
from core.digests import sha256_hex
from core.errors import AttestationError, LogTamperedError, SignerError
from core.messages import encode
from privacy.signing import SiteKey, envelope_encoding, sign_document
from privacy.transparency_log import sign_checkpoint
from tests.support.audit_folders import AuditedRun, audited_run, write_audit
from tests.support.reports import rich_report

KEY = SiteKey.generate()
NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> AuditedRun:
    return audited_run(tmp_path_factory.mktemp("run"), KEY)


@pytest.fixture(scope="module")
def original(run: AuditedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_audit(tmp_path_factory.mktemp("audits") / "audit", run)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "audit"))


def verify(folder: Path, **changes: object) -> object:
    arguments: dict[str, object] = {"trusted": {KEY.public_hex}, "at": NOW}
    return verify_audit(folder, **(arguments | changes))  # type: ignore[arg-type]


def test_an_audit_s_folder_verifies_and_says_what_it_holds(run: AuditedRun, original: Path) -> None:
    found = verify_audit(original, trusted={KEY.public_hex}, at=NOW)
    assert found.report == run.report
    assert found.cosigned == {"lakeside": 4, "mercy": 4}
    assert found.log_size == 4
    assert not found.receipt.released
    assert {path.name for path in original.iterdir()} == FILES | {MANIFEST_FILE}


def test_equal_audits_are_equal_bytes(run: AuditedRun, original: Path) -> None:
    files = attestation_files(run.report, run.drawn, run.evidence, KEY)
    assert {name: (original / name).read_bytes() for name in files} == files


@pytest.mark.parametrize("name", sorted(FILES | {MANIFEST_FILE}))
def test_a_changed_byte_shows_in_each_file(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for place in range(0, len(data), max(len(data) // 8, 1)):
        altered = bytearray(data)
        altered[place] ^= 1
        (folder / name).write_bytes(altered)
        with pytest.raises(AttestationError):
            verify(folder)
    for other in (data[:-1], data + b"\n", b"", data[1:]):
        (folder / name).write_bytes(other)
        with pytest.raises(AttestationError):
            verify(folder)


@pytest.mark.parametrize("name", sorted(FILES | {MANIFEST_FILE}))
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(AttestationError, match=name):
        verify(folder)


def test_an_added_file_is_named(folder: Path) -> None:
    (folder / "report-2.html").write_text("all is well")
    with pytest.raises(AttestationError, match="report-2"):
        verify(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AttestationError, match="No such file"):
        verify(tmp_path / "none")


def test_files_of_another_audit_do_not_fit(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    other = write_audit(tmp_path / "other", audited_run(tmp_path / "second", KEY, rounds=4))
    for name in sorted(FILES | {MANIFEST_FILE}):
        swapped = Path(shutil.copytree(folder, tmp_path / f"swapped-{name}"))
        if (other / name).read_bytes() == (swapped / name).read_bytes():
            continue
        shutil.copy(other / name, swapped / name)
        with pytest.raises(AttestationError):
            verify(swapped)


def test_an_unknown_or_expired_auditor_is_refused(original: Path) -> None:
    with pytest.raises(SignerError, match="unknown"):
        verify(original, trusted={SiteKey.generate().public_hex})
    with pytest.raises(SignerError, match="expired"):
        verify(original, at=datetime(2029, 1, 1, tzinfo=UTC))
    with pytest.raises(SignerError, match="issued already"):
        verify(original, at=datetime(2026, 2, 1, tzinfo=UTC))
    with pytest.raises(SignerError, match="not yet valid"):
        verify(original, at=datetime(2025, 2, 1, tzinfo=UTC))


def test_a_known_site_s_key_is_held_against_the_folder(original: Path) -> None:
    receipt = parse_receipt((original / "receipt.json").read_bytes())
    keys = {item.body.site: item.public_key for item in receipt.log.cosignatures}
    verify(original, site_keys=keys)
    with pytest.raises(LogTamperedError, match="in this site's name"):
        verify(original, site_keys={"mercy": keys["lakeside"]})


# What a dishonest auditor, who signs anew whatever he changed, is still caught at.


def resigned(run: AuditedRun, tmp_path: Path, **changes: object) -> Path:
    return write_audit(tmp_path / "forged", replace(run, evidence=replace(run.evidence, **changes)))  # type: ignore[arg-type]


def test_an_auditor_cannot_cut_change_or_fork_the_log(run: AuditedRun, tmp_path: Path) -> None:
    lines = run.evidence.record.splitlines(keepends=True)
    forgeries = (
        b"".join(lines[:-1]),
        b"".join(lines[1:]),
        b"".join([lines[1], lines[0], *lines[2:]]),
        run.evidence.record.replace(b'"server_round":1', b'"server_round":7'),
        run.evidence.record[:-1],
    )
    for number, record in enumerate(forgeries):
        (tmp_path / str(number)).mkdir()
        forged = resigned(run, tmp_path / str(number), record=record)
        with pytest.raises(LogTamperedError):
            verify(forged)


def test_nor_can_he_with_the_log_key_against_the_sites(run: AuditedRun, tmp_path: Path) -> None:
    from privacy.merkle_tree import leaf_hash, root_of

    record = run.evidence.record.replace(b'"server_round":1', b'"server_round":7')
    root = root_of([leaf_hash(line) for line in record.splitlines()])
    checkpoint = sign_checkpoint(run.log_key, run.report.identity.run_id, 4, root)
    log = run.evidence.log.model_copy(update={"checkpoint": checkpoint})
    with pytest.raises(LogTamperedError, match="expected the log that site lakeside signed"):
        verify(resigned(run, tmp_path, record=record, log=log))


def test_a_model_that_is_not_the_last_round_s_is_refused(run: AuditedRun, tmp_path: Path) -> None:
    identity = run.report.identity.model_copy(update={"model_digest": "e" * 64})
    report = sign_report(run.report.model_copy(update={"identity": identity}), KEY)
    with pytest.raises(LogTamperedError, match="the log's last round left"):
        verify(write_audit(tmp_path / "forged", replace(run, report=report)))


def test_a_ledger_that_is_not_the_report_s_is_refused(run: AuditedRun) -> None:
    ledgers = {**run.evidence.ledgers, "mercy": run.evidence.ledgers["mercy"][:-2]}
    with pytest.raises(LogTamperedError, match="ledger of mercy"):
        make_receipt(run.report, b"", replace(run.evidence, ledgers=ledgers), KEY)


def test_the_key_must_be_the_report_s_auditor_s(run: AuditedRun) -> None:
    with pytest.raises(AttestationError, match="expected the key of the auditor"):
        make_receipt(run.report, b"", run.evidence, SiteKey.generate())


def receipt_bytes(original: Path) -> bytes:
    return (original / "receipt.json").read_bytes()


def test_the_receipt_says_what_was_spent_and_who_signed(run: AuditedRun, original: Path) -> None:
    receipt = parse_receipt(receipt_bytes(original))
    assert [site.site for site in receipt.sites] == ["lakeside", "mercy", "riverside"]
    assert [site.num_events for site in receipt.sites] == [13, 13, None]
    mercy = receipt.sites[1]
    assert mercy.ledger is not None
    assert mercy.ledger.head == run.evidence.ledgers["mercy"][-1].head
    assert receipt.sites[2].ledger is None
    assert receipt.log == run.evidence.log


def test_a_receipt_calls_nothing_released_where_a_gate_failed(original: Path) -> None:
    receipt = parse_receipt(receipt_bytes(original))
    for gates in (
        receipt.gates,
        tuple(g.model_copy(update={"passed": True}) for g in receipt.gates),
    ):
        lie = receipt.model_copy(update={"gates": gates, "released": not receipt.released})
        honest = all(gate.passed for gate in gates) == lie.released
        signed = lie.model_copy(update={"signature": sign_document(KEY, "privacy-receipt", lie)})
        if honest:
            assert parse_receipt(encode(signed)).released
        else:
            with pytest.raises(AttestationError, match="every gate passed"):
                parse_receipt(encode(signed))


def test_a_receipt_with_two_ledgers_of_one_site_is_refused(original: Path) -> None:
    receipt = parse_receipt(receipt_bytes(original))
    mercy, lakeside = receipt.sites[1], receipt.sites[0]
    swapped = (lakeside, mercy.model_copy(update={"ledger": lakeside.ledger}), receipt.sites[2])
    lie = receipt.model_copy(update={"sites": swapped})
    signed = lie.model_copy(update={"signature": sign_document(KEY, "privacy-receipt", lie)})
    with pytest.raises(LogTamperedError, match="one ledger of site mercy"):
        parse_receipt(encode(signed))
    assert mercy.ledger is not None
    proof = mercy.ledger.model_copy(update={"signature": "0" * 128})
    lie = receipt.model_copy(
        update={"sites": (lakeside, mercy.model_copy(update={"ledger": proof}))}
    )
    signed = lie.model_copy(update={"signature": sign_document(KEY, "privacy-receipt", lie)})
    with pytest.raises(LogTamperedError, match="ledger key of mercy"):
        parse_receipt(encode(signed))


def every_byte(
    original: Path, parse: Callable[[bytes], object], name: str, places: range | None = None
) -> None:
    data = (original / name).read_bytes()
    parse(data)
    for place in places or range(len(data)):
        altered = bytearray(data)
        altered[place] ^= 1
        with pytest.raises(AttestationError):
            parse(bytes(altered))


def check_report(data: bytes) -> None:
    verify_report(parse_report(data))


PARSERS: dict[str, Callable[[bytes], object]] = {
    "report.json": check_report,
    "receipt.json": parse_receipt,
    "attestation.json": lambda data: open_statement(data, KEY.public_hex),
    "manifest.json": parse_manifest,
}


@pytest.mark.parametrize("name", PARSERS)
def test_a_changed_byte_shows_without_the_manifest(original: Path, name: str) -> None:
    size = len((original / name).read_bytes())
    every_byte(original, PARSERS[name], name, range(0, size, max(size // 60, 1)))


@pytest.mark.soak
@pytest.mark.parametrize("name", PARSERS)
def test_every_changed_byte_shows_without_the_manifest(original: Path, name: str) -> None:
    every_byte(original, PARSERS[name], name)


@given(st.binary(max_size=200))
@settings(max_examples=50)
def test_only_named_errors_escape(data: bytes) -> None:
    for parse in PARSERS.values():
        with pytest.raises(AttestationError):
            parse(data)


def test_the_statement_is_an_in_toto_test_result(run: AuditedRun, original: Path) -> None:
    statement = open_statement((original / "attestation.json").read_bytes(), KEY.public_hex)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert {item["name"] for item in statement["subject"]} == {
        "manifest.json",
        "model.safetensors",
        "weights",
    }
    predicate = statement["predicate"]
    assert predicate["result"] == "FAILED"
    assert predicate["failedTests"] == ["B1", "F5", "gate/max_gap"]
    assert predicate["warnedTests"] == ["B4", "M1"]
    assert {"C2", "D1"} <= set(predicate["passedTests"])


def test_the_envelope_is_signed_as_the_specification_says() -> None:
    """DSSE's own vector for what is signed, and a key that is not ours to check the signature."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    encoded = envelope_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    envelope = json.loads(seal_statement({"_type": "x"}, KEY))
    payload = base64.b64decode(envelope["payload"])
    assert envelope["payloadType"] == PAYLOAD_TYPE == "application/vnd.in-toto+json"
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(KEY.public_hex))
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)


def test_an_envelope_of_another_type_or_key_is_refused(original: Path) -> None:
    data = (original / "attestation.json").read_bytes()
    with pytest.raises(AttestationError):
        open_statement(data, SiteKey.generate().public_hex)
    with pytest.raises(AttestationError, match="in-toto test result"):
        open_statement(seal_statement({"_type": "other"}, KEY), KEY.public_hex)


def redrawn(run: AuditedRun, **changes: object) -> AuditedRun:
    """With another report, signed anew and drawn anew."""
    report = sign_report(run.report.model_copy(update=changes), KEY)
    return replace(run, report=report, drawn=report_files(report))


def all_passed(run: AuditedRun) -> tuple[Gate, ...]:
    return tuple(gate.model_copy(update={"passed": True}) for gate in run.report.gates)


def without_a_gap(test: TestRecord) -> TestRecord:
    measures = [item.model_dump() for item in test.result.measures]
    for item in measures:
        if item["name"] == "accuracy-gap":
            item["interval"]["low"] = 0.01
    result = {**test.result.model_dump(), "measures": measures}
    return test.model_copy(update={"result": TestResult.model_validate(result, strict=False)})


def test_a_released_model_s_receipt_says_so(run: AuditedRun, tmp_path: Path) -> None:
    tests = tuple(without_a_gap(test) for test in run.report.tests)
    gates = tuple(
        gate.model_copy(update={"measured": 0.01}) if gate.name == "max_gap" else gate
        for gate in all_passed(run)
    )
    folder = write_audit(tmp_path / "released", redrawn(run, gates=gates, tests=tests))
    assert verify_audit(folder, trusted={KEY.public_hex}, at=NOW).receipt.released


def test_an_auditor_cannot_call_a_gate_passed_that_failed(run: AuditedRun, tmp_path: Path) -> None:
    with pytest.raises(AttestationError, match="expected the gate max_gap to fail"):
        verify(write_audit(tmp_path / "forged", redrawn(run, gates=all_passed(run))))


def test_nor_leave_one_out_or_choose_its_limit(run: AuditedRun, tmp_path: Path) -> None:
    fewer = tuple(gate for gate in run.report.gates if gate.passed)
    wider = tuple(
        gate.model_copy(update={"limit": 0.9, "passed": True}) if gate.name == "max_gap" else gate
        for gate in run.report.gates
    )
    for name, gates in (("none", ()), ("fewer", fewer), ("wider", wider)):
        with pytest.raises(AttestationError, match="the gates that the run began with"):
            verify(write_audit(tmp_path / name, redrawn(run, gates=gates)))


@pytest.mark.parametrize("name", ["config_digest", "task_digest", "audit_commitment"])
def test_nor_put_another_configuration_under_the_run(
    run: AuditedRun, tmp_path: Path, name: str
) -> None:
    identity = run.report.identity.model_copy(update={name: "e" * 64})
    with pytest.raises(LogTamperedError, match=name):
        verify(write_audit(tmp_path / "forged", redrawn(run, identity=identity)))


def test_nor_show_another_seed(run: AuditedRun, tmp_path: Path) -> None:
    identity = run.report.identity.model_copy(update={"audit_seed": "e" * 64})
    with pytest.raises(AttestationError, match="the seed that the run committed to"):
        verify(write_audit(tmp_path / "forged", redrawn(run, identity=identity)))


def test_nor_write_a_better_first_page(run: AuditedRun, tmp_path: Path) -> None:
    conclusion = run.report.conclusion.model_copy(update={"verdict": Verdict.PASS})
    with pytest.raises(AttestationError, match="expected the verdict FAIL"):
        verify(write_audit(tmp_path / "forged", redrawn(run, conclusion=conclusion)))


def test_nor_draw_another_page_than_the_report(run: AuditedRun, tmp_path: Path) -> None:
    for name, word in (("report.html", b"FAIL"), ("report.md", b"FAIL"), ("junit.xml", b"failure")):
        drawn = {**run.drawn, name: run.drawn[name].replace(word, b"PASS")}
        assert drawn != run.drawn
        with pytest.raises(AttestationError, match=f"expected {name} as it is drawn"):
            verify(write_audit(tmp_path / name, replace(run, drawn=drawn)))


def signed_anew(folder: Path, name: str, data: bytes) -> Path:
    """The folder with another file, under a manifest by the same auditor."""
    (folder / name).write_bytes(data)
    manifest = parse_manifest((folder / MANIFEST_FILE).read_bytes())
    files = tuple(
        item.model_copy(update={"sha256": sha256_hex(data)}) if item.name == name else item
        for item in manifest.files
    )
    unsigned = manifest.model_copy(update={"files": files})
    signature = sign_document(KEY, "audit-manifest", unsigned)
    signed = unsigned.model_copy(update={"signature": signature})
    (folder / MANIFEST_FILE).write_bytes(encode(signed))
    return folder


def test_nor_attest_what_the_report_does_not_say(original: Path, folder: Path) -> None:
    data = (folder / "attestation.json").read_bytes()
    for name, value in (("result", "PASSED"), ("failedTests", []), ("passedTests", ["B1"])):
        statement = open_statement(data, KEY.public_hex)
        statement["predicate"][name] = value
        with pytest.raises(AttestationError, match="what this report says"):
            verify(signed_anew(folder, "attestation.json", seal_statement(statement, KEY)))
    verify(signed_anew(folder, "attestation.json", data))


def test_nor_write_a_cheaper_receipt(folder: Path) -> None:
    receipt = parse_receipt((folder / "receipt.json").read_bytes())
    first, *others = receipt.sites
    for changes in (
        {"mode": "none"},
        {"unit": "user"},
        {"neighbouring": "replace_one"},
        {"sites": (first.model_copy(update={"events": ()}), *others)},
        {"sites": (first.model_copy(update={"private": False}), *others)},
    ):
        lie = receipt.model_copy(update=changes)
        signed = lie.model_copy(update={"signature": sign_document(KEY, "privacy-receipt", lie)})
        with pytest.raises(AttestationError, match="as in the report"):
            verify(signed_anew(folder, "receipt.json", encode(signed)))


def test_a_report_of_another_key_is_not_attested(run: AuditedRun) -> None:
    other = SiteKey.generate()
    report = rich_report(other)
    with pytest.raises(AttestationError, match="expected the key of the auditor"):
        attestation_files(report, run.drawn, run.evidence, KEY)


def test_an_audit_without_one_of_its_files_is_not_attested(run: AuditedRun) -> None:
    drawn = {name: data for name, data in run.drawn.items() if name != "junit.xml"}
    with pytest.raises(AttestationError, match=r"junit\.xml"):
        attestation_files(run.report, drawn, run.evidence, KEY)


def test_an_audit_is_written_beside_its_report_in_one_go(run: AuditedRun, tmp_path: Path) -> None:
    added = attestation_files(run.report, report_files(run.report), run.evidence, KEY)
    write_report(tmp_path / "audit", run.report, added)
    verify(tmp_path / "audit")
