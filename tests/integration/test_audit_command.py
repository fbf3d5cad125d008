"""`cloister audit` as people use it, above all wrongly: named errors, and nothing half written."""

import json
import shutil
import signal
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from audit.subject import open_subject
from audit.suite import all_tests, run_suite
from audit.verdicts import NotRun, Verdict
from cli.auditor_folder import AUDITOR_FILE, make_auditor
from cli.main import main
from coordinator.run_directory import held_folder
from core.checkpoints import load_checkpoint, save_checkpoint
from core.errors import SiteKeyError
from core.messages import encode
from privacy.identities.clock import utc_now, write_timestamp
from tests.support.audited import simulated_run
from tests.support.command import Done, cloister
from tests.support.disks import fill, read_only_disk, small_disk
from tests.support.federation import FEDERATION, SITES
from tests.support.forked import run_apart

# No time for any test: what is tested here is all that stands around them.
CUT = ("--suite", "conformance", "--time-limit", "0.001")
GATE_FAILED = 4
WHOLE = frozenset(
    {
        "report.json", "report.html", "report.md", "junit.xml", "receipt.json", "attestation.json",
        "model-card.md", "cyclonedx.json", "log.jsonl", "log.checkpoint", "manifest.json",
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    federation = FEDERATION.replace("num_rounds = 3", "num_rounds = 1")
    return simulated_run(tmp_path_factory.mktemp("simulated"), federation=federation)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def federation(finished: Path) -> Iterator[Path]:
    """The files that the sites' records come from, as they were when the test has ended."""
    folder = finished.parent / "federation"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    yield folder
    for path, data in before.items():
        path.write_bytes(data)


@pytest.fixture(scope="module")
def audited(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an auditor `ann` and her audit."""
    folder = tmp_path_factory.mktemp("audited")
    run = shutil.copytree(finished, folder / "run")
    make_auditor(folder / "ann", "Ann", "data-protection officer", 30)
    done = audit(run, "--auditor", folder / "ann", "--output", folder / "audit")
    assert done.returncode == GATE_FAILED, done.stderr
    return folder


def audit(run: Path, *more: str | Path) -> Done:
    return cloister("audit", "run", run, *CUT, *more)


def contents(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(folder.rglob("*"))
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in paths
    }


def assert_refused(done: Done, code: str, *words: str) -> None:
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"cloister: {code}: "), done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr


def test_an_audit_is_written_whole_and_says_what_was_cut(run: Path) -> None:
    done = audit(run)
    assert done.returncode == GATE_FAILED
    assert {path.name for path in (run / "audit-conformance").iterdir()} == WHOLE
    assert f"report, receipt and log: {run / 'audit-conformance'}\n" in done.stdout
    assert "NOT RELEASED" in done.stdout
    assert done.stderr == ""  # no progress where nobody watches
    assert not (run / "release.json").exists()
    assert not list(run.glob(".*"))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("run.json", "subject"),
        ("record.jsonl", "subject"),
        ("terms.json", "run"),
        ("audit.seed", "audit"),
        ("model/manifest.json", "checkpoint"),
        ("model/model.safetensors", "checkpoint"),
        ("sites/north/ledger.sqlite.key", "site-key"),
        ("sites/north/ledger.sqlite.witness", "ledger-"),
    ],
)
def test_a_run_directory_that_lacks_something_is_refused_untouched(
    run: Path, name: str, code: str
) -> None:
    path = run / name
    data, mode = path.read_bytes(), path.stat().st_mode
    for damaged in (None, b"", data[: len(data) // 2], b"\xff\0" * 40):
        path.unlink()
        if damaged is not None:
            path.touch(mode & 0o777)
            path.write_bytes(damaged)
        before = contents(run)
        done = audit(run)
        assert done.returncode == 1, (damaged, done.stderr)
        assert done.stderr.startswith(f"cloister: {code}"), (damaged, done.stderr)
        assert contents(run) == before
        path.touch(mode & 0o777)
    path.unlink()
    path.mkdir()
    before = contents(run)
    assert audit(run).returncode == 1
    assert contents(run) == before


@pytest.mark.parametrize("name", ["log.checkpoint", "log.key", "sites/south/ledger.sqlite"])
def test_a_damaged_log_or_ledger_is_refused_and_no_report_written(run: Path, name: str) -> None:
    path = run / name
    data = path.read_bytes()
    for damaged in (b"", data[: len(data) // 2], b"\xff\0" * 40):
        path.write_bytes(damaged)
        done = audit(run)
        assert done.returncode == 1, (damaged, done.stderr)
        assert done.stderr.startswith("cloister: "), done.stderr
        assert not list(run.glob("*audit-conformance*"))
    path.unlink()
    path.mkdir()
    assert audit(run).returncode == 1
    assert not list(run.glob("*audit-conformance*"))


def test_what_is_no_run_is_named_and_nothing_written_into_it(tmp_path: Path) -> None:
    letter = tmp_path / "letters" / "letter.txt"
    letter.parent.mkdir()
    letter.write_text("Dear Ann")
    for folder, code in (
        (letter.parent, "subject"),
        (letter, "audit"),
        (tmp_path / "nothing", "subject"),
    ):
        before = contents(tmp_path)
        assert_refused(audit(folder), code, str(folder))
        assert contents(tmp_path) == before


def test_lines_that_are_no_rounds_are_named(run: Path) -> None:
    path = run / "record.jsonl"
    begun = path.read_bytes().splitlines(keepends=True)[0]
    for line in (b'{"kind":"round"}\n', b'{"kind":"round","server_round":"1"}\n'):
        path.write_bytes(begun + line)
        assert_refused(audit(run), "subject", "the rounds of a run")


def test_a_run_that_has_not_ended_is_named(run: Path) -> None:
    path = run / "record.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    assert_refused(audit(run), "subject", "has ended")


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_model_that_is_not_the_run_s_is_named(run: Path, value: float) -> None:
    model = load_checkpoint(run / "model")
    arrays = {
        kind: {name: np.array(array) for name, array in group.items()}
        for kind, group in model.arrays.items()
    }
    next(iter(arrays["model"].values()))[...] = value
    shutil.rmtree(run / "model")
    save_checkpoint(run / "model", arrays, dict(model.metadata))
    before = contents(run)
    assert_refused(audit(run), "subject", "the weights", "hint: this model is not")
    assert contents(run) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("--suite", "nonsense"),
        ("--time-limit", "0"),
        ("--time-limit", "-5"),
        ("--time-limit", "nan"),
        ("--time-limit", "inf"),
        ("--time-limit", "soon"),
        ("--purpose", "x" * 4001),
        ("--legal-basis", "\udcff"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    run: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    with pytest.raises(SystemExit) as stopped:
        main(["audit", "run", str(run), *arguments], own_process=False)
    assert stopped.value.code == 2
    assert f"argument {arguments[0]}: " in capsys.readouterr().err
    assert contents(run) == before


@pytest.mark.parametrize(
    ("packs", "code", "word"),
    [
        (("crows-pairs",), 2, "NAME=PATH"),
        (("crows-pairs=",), 2, "NAME=PATH"),
        (("other=file.csv",), 2, "NAME=PATH"),
        (("crows-pairs=missing.csv",), 1, "nothing there"),
        (("crows-pairs=/", "crows-pairs=/"), 2, "once"),
    ],
)
def test_packs_that_cannot_be_used_are_named_at_once(
    run: Path, packs: tuple[str, ...], code: int, word: str
) -> None:
    before = contents(run)
    given = [item for pack in packs for item in ("--pack", pack)]
    done = cloister("audit", "run", run, "--suite", "full", *given)
    assert (done.returncode, word in done.stderr) == (code, True), done.stderr
    assert contents(run) == before


def test_a_pack_that_no_test_would_read_is_refused(run: Path) -> None:
    done = audit(run, "--pack", f"crows-pairs={run}")
    assert done.returncode == 2
    assert "--suite full" in done.stderr


def test_a_place_that_cannot_be_written_is_named_before_any_site_is_asked(
    run: Path, tmp_path: Path
) -> None:
    there, file = tmp_path / "there", tmp_path / "file"
    there.mkdir()
    file.touch()
    before = contents(tmp_path)
    for output in (there, file, file / "below", tmp_path / ("x" * 300), Path("/proc/1/audit")):
        assert_refused(audit(run, "--output", output), "audit")
        assert contents(tmp_path) == before


def test_a_full_disk_leaves_no_report(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "small"
    output.mkdir()
    log = tmp_path / "log"
    assert run_apart(partial(_on_a_full_disk, run, output), log) == 0, log.read_text()
    assert "No space left" in log.read_text()


def _on_a_full_disk(run: Path, output: Path) -> None:
    small_disk(output, 1 << 20)
    fill(output)
    command = ["audit", "run", str(run), *CUT, "--output", str(output / "audit")]
    assert main(command, own_process=False) == 1
    assert [path.name for path in output.iterdir()] == ["full"]


def test_a_run_that_cannot_be_written_to_is_named(run: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run_apart(partial(_read_only, run, tmp_path / "audit"), log) == 0, log.read_text()
    assert "cloister: " in log.read_text()
    assert "Traceback" not in log.read_text()


def _read_only(run: Path, output: Path) -> None:
    make_auditor(output.parent / "ann", "Ann", "auditor", 30)
    read_only_disk(run)
    for more in ([], ["--auditor", str(output.parent / "ann"), "--output", str(output)]):
        assert main(["audit", "run", str(run), *CUT, *more], own_process=False) == 1
    assert not output.exists()


def test_an_interrupted_audit_leaves_nothing_half(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)  # the tests of conformance take longer
        done = cloister("audit", "run", run, "--suite", "conformance")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert done.returncode == 130
    assert done.stderr == "cloister: interrupted; run the same command again to go on\n"
    assert {path.name for path in run.iterdir()} <= names | {"auditor", "log.signed"}
    assert audit(run).returncode == GATE_FAILED


def test_two_commands_do_not_ask_the_sites_at_once(run: Path) -> None:
    with held_folder(run, hint="none"):
        assert_refused(audit(run), "run", "another process", "hint: wait")
    assert audit(run).returncode == GATE_FAILED


def test_columns_of_groups_that_a_site_lacks_are_named_before_it_pays(
    run: Path, federation: Path
) -> None:
    file = federation / "south.toml"
    file.write_text(file.read_text().replace(', groups = ["sex"]', ""))
    ledgers = {path: path.read_bytes() for path in run.glob("sites/*/ledger.sqlite")}
    done = cloister("audit", "run", run, "--suite", "quick")
    assert_refused(done, "data", "columns of groups sex at site south")
    assert ledgers == {path: path.read_bytes() for path in run.glob("sites/*/ledger.sqlite")}
    assert not (run / "audit-counts.json").exists()


@pytest.mark.parametrize("change", ["one", "stranger", "same-label", "nan"])
def test_records_that_nothing_can_be_said_of_are_never_passed(
    run: Path, federation: Path, change: str
) -> None:
    for name in SITES:
        path = federation / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for number, row in enumerate(rows):
            if change == "one":
                row["sex"] = "male" if number else "female"
            elif change == "stranger":
                row["sex"] = "not in the list"
            elif change == "same-label":
                row["label"] = "calm"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    subject = open_subject(run)
    if change == "nan":
        with torch.no_grad():
            for parameter in subject.model.model.parameters():
                parameter.fill_(float("nan"))
    chosen = ("MI1", "B1") if change == "nan" else ("B1", "B2", "B7")
    tests = [test for test in all_tests() if test.card.id in chosen]
    outcome = run_suite(subject, "quick", tests=tests)
    assert len(outcome.results) + len(outcome.not_run) == len(tests)
    assert all(isinstance(item, NotRun) and item.reason for item in outcome.not_run)
    assert all(item.headline for item in outcome.results)
    verdicts = {item.verdict for item in outcome.results if item.test in ("MI1", "B1")}
    assert verdicts == {Verdict.INCONCLUSIVE}


@pytest.mark.parametrize(
    ("begins", "ends", "words"), [(-20, -10, "expired"), (10, 20, "not yet valid")]
)
def test_a_key_out_of_its_time_signs_nothing(
    run: Path, tmp_path: Path, begins: int, ends: int, words: str
) -> None:
    made = make_auditor(tmp_path / "ann", "Ann", "auditor", 30)
    times = {
        "not_before": write_timestamp(utc_now() + timedelta(days=begins)),
        "not_after": write_timestamp(utc_now() + timedelta(days=ends)),
    }
    (tmp_path / "ann" / AUDITOR_FILE).write_bytes(encode(made.model_copy(update=times)))
    before = contents(run)
    assert_refused(audit(run, "--auditor", tmp_path / "ann"), "signer", words)
    assert contents(run) == before


def test_an_auditor_s_folder_is_checked(run: Path, tmp_path: Path) -> None:
    make_auditor(tmp_path / "ann", "Ann", "auditor", 30)
    make_auditor(tmp_path / "bob", "Bob", "auditor", 30)
    assert_refused(audit(run, "--auditor", tmp_path), "signer", "audit key makes one")
    shutil.copy(tmp_path / "bob" / AUDITOR_FILE, tmp_path / "ann" / AUDITOR_FILE)
    assert_refused(audit(run, "--auditor", tmp_path / "ann"), "signer", "'Bob'", "another")
    (tmp_path / "ann" / AUDITOR_FILE).write_bytes(b"{")
    assert_refused(audit(run, "--auditor", tmp_path / "ann"), "signer")


def test_a_key_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (
        ("--output", tmp_path / "file", "--name", "Ann", "--role", "auditor"),
        ("--output", tmp_path / "ann", "--name", "", "--role", "auditor"),
        ("--output", tmp_path / "ann", "--name", "Ann", "--role", "a\nb"),
        ("--output", tmp_path / "ann", "--name", "Ann", "--role", "auditor", "--days", "0"),
    ):
        done = cloister("audit", "key", *arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
        assert not (tmp_path / "ann").exists()
    taken = tmp_path / "taken"
    (taken / AUDITOR_FILE).mkdir(parents=True)
    with pytest.raises(SiteKeyError, match="cannot write"):
        make_auditor(taken, "Ann", "auditor", 30)
    assert [path.name for path in taken.iterdir()] == [AUDITOR_FILE]


def test_verify_wants_the_very_files_and_a_key_that_is_trusted(
    audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trust = ("--trust", audited / "ann" / AUDITOR_FILE)
    done = cloister("audit", "verify", audited / "audit", *trust)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("verified: every file is what Ann (data-protection officer)")
    assert_refused(
        cloister("audit", "verify", audited / "audit", "--trust", "0" * 64), "signer", "unknown key"
    )
    assert_refused(cloister("audit", "verify", audited / "audit", "--trust", "ann"), "signer")
    assert_refused(cloister("audit", "verify", audited / "run", *trust), "attestation")
    assert_refused(cloister("audit", "verify", tmp_path / "no", *trust), "attestation")
    with pytest.raises(SystemExit):
        main(["audit", "verify", str(audited / "audit")], own_process=False)
    assert "--trust" in capsys.readouterr().err
    copy = Path(shutil.copytree(audited / "audit", tmp_path / "audit"))
    (copy / "notes.txt").touch()
    assert_refused(cloister("audit", "verify", copy, *trust), "attestation", "notes.txt")
    (copy / "notes.txt").unlink()
    for name in sorted(WHOLE):
        data = (copy / name).read_bytes()
        (copy / name).unlink()
        assert_refused(cloister("audit", "verify", copy, *trust), "attestation", name)
        (copy / name).write_bytes(data[:-1])
        assert_refused(cloister("audit", "verify", copy, *trust), "attestation")
        (copy / name).write_bytes(data)
    assert cloister("audit", "verify", copy, *trust, "--json").returncode == 0


def test_what_changed_since_an_earlier_audit_is_said(audited: Path, run: Path) -> None:
    done = audit(run, "--previous", audited / "audit", "--json")
    assert done.returncode == GATE_FAILED, done.stderr
    assert json.loads(done.stdout)["changes"] is not None
    compared = cloister("audit", "compare", audited / "audit", run / "audit-conformance")
    assert compared.returncode == 0
    assert "what changed" in compared.stdout
    assert_refused(audit(run, "--previous", run, "--output", run / "a"), "attestation")
    assert_refused(cloister("audit", "compare", audited / "audit", run), "attestation")
