import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from coordinator.run_directory import RunDirectory
from coordinator.run_log import RunLog, keep_signatures, log_holder, log_key
from core.config import FederationConfig
from core.errors import LogTamperedError, RunError, SiteKeyError, VaultError
from core.log_messages import Checkpoint, SignedLog
from core.messages import decode
from privacy.log_witnesses import witness
from privacy.signing import SiteKey
from privacy.transparency_log import log_lines, verify_lines, verify_log
from privacy.vault import Vault
from tests.support.reports import federation
from tests.support.run_logs import debit, open_ledgers

CONFIG: FederationConfig = federation()


def opened(folder: Path, seal: Vault | None = None):  # type: ignore[no-untyped-def]
    return RunDirectory.open(folder, CONFIG, task_digest="d" * 64, seal=seal)


def write(folder: Path, lines: int, seal: Vault | None = None) -> RunDirectory:
    with opened(folder, seal) as run:
        for number in range(lines):
            run.append("attempt", server_round=number)
    return run  # type: ignore[no-any-return]


def checkpoint(folder: Path) -> Checkpoint:
    return decode(Checkpoint, (folder / "log.checkpoint").read_bytes())


def check(folder: Path) -> None:
    header = json.loads((folder / "run.json").read_bytes())
    lines = log_lines((folder / "record.jsonl").read_bytes())
    verify_lines(lines, checkpoint(folder), header["log_key"], header["run_id"])


def test_the_log_s_lines_are_the_record_s_bytes(tmp_path: Path) -> None:
    write(tmp_path, 3)
    check(tmp_path)
    assert checkpoint(tmp_path).size == 3


def test_a_run_that_goes_on_signs_on(tmp_path: Path) -> None:
    write(tmp_path, 3)
    write(tmp_path, 2)
    check(tmp_path)
    assert checkpoint(tmp_path).size == 5


def test_a_line_is_signed_once_it_lies_on_the_disk(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.append("attempt", server_round=1)
        run.append("round", sync=False, server_round=1)
        assert checkpoint(tmp_path).size == 1
        run.append("attempt", server_round=2)
        assert checkpoint(tmp_path).size == 3
    check(tmp_path)


def test_a_record_is_refused_that_was_cut_at_any_line(tmp_path: Path) -> None:
    write(tmp_path, 5)
    path = tmp_path / "record.jsonl"
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    for size in range(5):
        cut = b"".join(lines[:size])
        path.write_bytes(cut)
        with pytest.raises(LogTamperedError, match="expected the 5 lines"), opened(tmp_path):
            pass
        assert path.read_bytes() == cut  # nothing of it was touched
    path.unlink()
    with pytest.raises(LogTamperedError), opened(tmp_path):
        pass
    path.write_bytes(data)
    write(tmp_path, 1)


def test_a_record_is_refused_that_was_changed_at_any_line(tmp_path: Path) -> None:
    write(tmp_path, 5)
    path = tmp_path / "record.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for place in range(5):
        other = lines[place].replace(b"server_round", b"server_rounD")
        path.write_bytes(b"".join([*lines[:place], other, *lines[place + 1 :]]))
        with pytest.raises(LogTamperedError, match="as they were signed"), opened(tmp_path):
            pass
    path.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(LogTamperedError), opened(tmp_path):
        pass


def test_a_lost_checkpoint_is_made_again(tmp_path: Path) -> None:
    write(tmp_path, 3)
    (tmp_path / "log.checkpoint").unlink()
    write(tmp_path, 1)
    assert checkpoint(tmp_path).size == 4
    check(tmp_path)


def test_an_older_checkpoint_is_continued(tmp_path: Path) -> None:
    write(tmp_path, 2)
    older = (tmp_path / "log.checkpoint").read_bytes()
    write(tmp_path, 2)
    (tmp_path / "log.checkpoint").write_bytes(older)
    write(tmp_path, 1)
    assert checkpoint(tmp_path).size == 5


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_a_checkpoint_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, 1)
    (tmp_path / "log.checkpoint").write_bytes(content)
    with pytest.raises(LogTamperedError, match="signed checkpoint"), opened(tmp_path):
        pass


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "one", 2)
    write(tmp_path / "two", 2)
    other = (tmp_path / "two" / "log.checkpoint").read_bytes()
    (tmp_path / "one" / "log.checkpoint").write_bytes(other)
    with pytest.raises(LogTamperedError), opened(tmp_path / "one"):
        pass


def test_the_log_key_is_the_run_s_and_the_owner_s_alone(tmp_path: Path) -> None:
    write(tmp_path, 1)
    path = tmp_path / "log.key"
    assert path.stat().st_mode & 0o777 == 0o600
    os.chmod(path, 0o644)
    with pytest.raises(SiteKeyError, match="owner only"), opened(tmp_path):
        pass
    path.unlink()
    with pytest.raises(SiteKeyError), opened(tmp_path):
        pass
    assert not path.exists()  # a lost key is not replaced by another
    path.touch(0o600)
    path.write_bytes(SiteKey.generate().private_pem())
    with pytest.raises(RunError, match="log_key"), opened(tmp_path):
        pass


def test_a_key_that_was_made_before_a_crash_is_used(tmp_path: Path) -> None:
    key = log_key(tmp_path, None, new=True)
    write(tmp_path, 1)
    assert json.loads((tmp_path / "run.json").read_bytes())["log_key"] == key.public_hex


def test_the_log_key_is_sealed_where_the_run_is(tmp_path: Path) -> None:
    vault = Vault(b"k" * 32)
    write(tmp_path, 1, vault)
    assert b"PRIVATE KEY" not in (tmp_path / "log.key").read_bytes()
    write(tmp_path, 1, vault)
    check(tmp_path)
    with pytest.raises(VaultError), opened(tmp_path, Vault(b"l" * 32)):
        pass


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "none", "0" * 16, SiteKey.generate(), [])
    with pytest.raises(RunError, match="cannot write"):
        log.sign()


def test_a_run_that_began_without_a_log_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 1)
    header = json.loads((tmp_path / "run.json").read_bytes())
    del header["log_key"]
    (tmp_path / "run.json").write_text(json.dumps(header))
    with pytest.raises(RunError, match="log_key"), opened(tmp_path):
        pass


def test_sites_sign_the_log_of_a_run_and_what_they_signed_is_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with ExitStack() as stack:
        ledgers = {
            site: stack.enter_context(ledger)
            for site, ledger in open_ledgers(tmp_path, "north", "south").items()
        }
        with opened(run) as directory:
            for number in (1, 2):
                heads = {s: debit(le, number).model_dump() for s, le in ledgers.items()}
                directory.append("round", server_round=number, ledger_heads=heads)
        holder = log_holder(run, None)
        answers = {site: witness(le, holder.order(site)) for site, le in ledgers.items()}
        first = keep_signatures(run, holder, {"north": answers["north"], "south": ""})
        assert [item.body.site for item in first.cosignatures] == ["north"]
        both = keep_signatures(run, holder, {"south": answers["south"]})
        assert [item.body.site for item in both.cosignatures] == ["north", "south"]
        assert decode(SignedLog, (run / "log.signed").read_bytes()) == both
        verify_log(both, log_lines((run / "record.jsonl").read_bytes()), directory.run_id)
        with pytest.raises(LogTamperedError, match="of site south"):
            keep_signatures(run, holder, {"south": answers["north"]})
        assert decode(SignedLog, (run / "log.signed").read_bytes()) == both


def test_a_record_that_is_not_what_was_signed_is_shown_to_no_site(tmp_path: Path) -> None:
    write(tmp_path, 3)
    path = tmp_path / "record.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for forged in (lines[:-1], [*lines, lines[0]], [lines[1], lines[0], lines[2]]):
        path.write_bytes(b"".join(forged))
        with pytest.raises(LogTamperedError):
            log_holder(tmp_path, None)
    path.unlink()
    with pytest.raises(RunError, match="cannot read"):
        log_holder(tmp_path, None)
