import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.digests import canonical_json
from core.errors import (
    AccountingError,
    BudgetExceededError,
    LedgerError,
    LedgerRollbackError,
    LedgerTamperedError,
    PrivacyError,
    SiteKeyError,
)
from core.messages import LedgerHead
from privacy.accounting import epsilon_report
from privacy.events import DpSgdEvent, Event, LaplaceCountsEvent, NonPrivateEvent, event_to_json
from privacy.ledger import Ledger
from privacy.ledger_entries import NO_DIGEST, next_entry, verify_chain
from privacy.signing import SiteKey

ROUND = DpSgdEvent(1.0, 0.01, 400, 10_000, 100, 1.0)
RUN = "0123456789abcdef"
TASK = "ab" * 32
DELTA = 1e-5
COLUMNS = ("sequence", "time", "kind", "body", "previous", "hash", "signature")


def reserve(ledger: Ledger, event: Event = ROUND, **changes: Any) -> int:
    arguments: dict[str, Any] = {
        "run_id": RUN,
        "server_round": 1,
        "attempt": 1,
        "task_digest": TASK,
        "max_epsilon": 8.0,
        "delta": DELTA,
    }
    return ledger.reserve(event, **(arguments | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.open(path, site="north") as opened:
        yield opened


@pytest.fixture
def written(path: Path) -> Path:
    """A closed ledger: open, reserve, settle, reserve."""
    with Ledger.open(path, site="north") as ledger:
        ledger.settle(reserve(ledger), 100)
        reserve(ledger, LaplaceCountsEvent(2.0), server_round=2)
    return path


def sql(path: Path, statement: str, *values: object) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement, values).fetchall()


def beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def reopen(path: Path) -> Ledger:
    with Ledger.open(path, site="north") as ledger:
        return ledger


# What is written


def test_a_new_ledger_has_its_opening_entry(ledger: Ledger, path: Path) -> None:
    (entry,) = ledger.entries()
    assert (entry.sequence, entry.kind, entry.previous) == (1, "open", NO_DIGEST)
    assert entry.body["site"] == "north"
    assert ledger.head() == LedgerHead(sequence=1, digest=entry.digest)
    names = {file.name for file in path.parent.iterdir()}
    assert names >= {"ledger.sqlite", "ledger.sqlite.key", "ledger.sqlite.witness"}
    assert not [name for name in names if name.endswith(".new")]


def test_the_files_belong_to_the_owner_alone(ledger: Ledger, path: Path) -> None:
    reserve(ledger)
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


def test_sqlite_waits_for_the_disk(ledger: Ledger) -> None:
    assert ledger._store is not None
    connection = ledger._store._connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == (b"wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_ledger_is_a_chain_of_what_happened(written: Path) -> None:
    with Ledger.open(written, site="north") as ledger:
        entries = ledger.entries()
    assert [entry.kind for entry in entries] == ["open", "reserve", "settle", "reserve"]
    assert [entry.previous for entry in entries] == [NO_DIGEST, *(e.digest for e in entries[:-1])]
    assert entries[1].body == {
        "run_id": RUN,
        "server_round": 1,
        "attempt": 1,
        "task_digest": TASK,
        "max_epsilon": 8.0,
        "delta": DELTA,
        "event": event_to_json(ROUND),
    }
    assert entries[2].body == {"reserve": 2, "executed_steps": 100, "outcome": "completed"}


def test_spent_is_what_all_reserves_cost(ledger: Ledger) -> None:
    assert ledger.spent(DELTA).epsilon == 0.0
    for server_round in (1, 2, 3):
        reserve(ledger, server_round=server_round)
    assert ledger.spent(DELTA) == epsilon_report([ROUND] * 3, DELTA)
    assert ledger.spent(2e-6) == epsilon_report([ROUND] * 3, 2e-6)


def test_spent_is_computed_once_for_a_head(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("privacy.ledger.epsilon_report", lambda *asked: calls.append(asked))
    ledger.spent(DELTA)
    ledger.spent(DELTA)
    assert len(calls) == 1
    reserve(ledger)
    ledger.spent(DELTA)
    assert len(calls) == 2


def test_what_did_not_run_is_not_given_back(ledger: Ledger) -> None:
    sequence = reserve(ledger)
    before = ledger.spent(DELTA).epsilon
    ledger.settle(sequence, 0, "failed")
    assert ledger.spent(DELTA).epsilon == before > 0


def test_a_repeated_attempt_is_a_new_debit(ledger: Ledger) -> None:
    reserve(ledger)
    once = ledger.spent(DELTA).epsilon
    reserve(ledger)
    assert ledger.spent(DELTA).epsilon > once


def test_the_newest_order_of_each_run(ledger: Ledger) -> None:
    assert ledger.last_order(RUN) is None
    reserve(ledger, server_round=2, attempt=1)
    reserve(ledger, server_round=2, attempt=3)
    reserve(ledger, server_round=1, attempt=9)
    reserve(ledger, run_id="f" * 16, server_round=7)
    assert ledger.last_order(RUN) == (2, 3)
    assert ledger.last_order("f" * 16) == (7, 1)


def test_the_private_key_is_in_no_repr(ledger: Ledger) -> None:
    assert repr(ledger).endswith("..., private=***))")


# The cap


def test_the_cap_is_over_the_whole_life(path: Path) -> None:
    cap = epsilon_report([ROUND] * 3, DELTA).epsilon + 0.01
    for server_round in (1, 2, 3):
        with Ledger.open(path, site="north") as ledger:
            reserve(ledger, server_round=server_round, max_epsilon=cap)
    with Ledger.open(path, site="north") as ledger:
        head = ledger.head()
        with pytest.raises(BudgetExceededError, match="over the site's whole life, got"):
            reserve(ledger, server_round=4, max_epsilon=cap)
        assert ledger.head() == head
        assert ledger.spent(DELTA).epsilon <= cap


def test_the_cap_holds_exactly(ledger: Ledger) -> None:
    after = epsilon_report([ROUND] * 2, DELTA).epsilon
    reserve(ledger)
    with pytest.raises(BudgetExceededError):
        reserve(ledger, max_epsilon=after * (1 - 1e-12))
    reserve(ledger, max_epsilon=after)


def test_nothing_is_written_when_the_accountant_fails(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise AccountingError("no epsilon")

    head = ledger.head()
    monkeypatch.setattr("privacy.ledger.gate", fails)
    with pytest.raises(AccountingError, match="no epsilon"):
        reserve(ledger)
    monkeypatch.undo()
    assert ledger.head() == head
    reserve(ledger)


def test_private_events_do_not_follow_others(ledger: Ledger) -> None:
    reserve(ledger, NonPrivateEvent("test-noise", ROUND))
    reserve(ledger, NonPrivateEvent("no-privacy"))
    head = ledger.head()
    message = r"got a private event after a non-private one: .* would be unbounded\nhint: .*path of"
    with pytest.raises(BudgetExceededError, match=message):
        reserve(ledger)
    assert ledger.head() == head
    assert not ledger.spent(DELTA).private


def test_others_do_not_follow_private_events(ledger: Ledger) -> None:
    reserve(ledger)
    message = r"got a non-private event after a private one: .* would be unbounded"
    with pytest.raises(BudgetExceededError, match=message):
        reserve(ledger, NonPrivateEvent("no-privacy"))
    assert ledger.spent(DELTA).private


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"run_id": "x"}, LedgerError, r"expected run_id to match \[0-9a-f\]\{16\}, got 'x'"),
        ({"run_id": None}, LedgerError, "expected run_id to match"),
        ({"task_digest": TASK.upper()}, LedgerError, "expected task_digest to match"),
        ({"server_round": -1}, LedgerError, "expected server_round as an integer from 0, got -1"),
        ({"attempt": 1.0}, LedgerError, "expected attempt as an integer from 0"),
        ({"attempt": True}, LedgerError, "expected attempt as an integer from 0"),
        ({"max_epsilon": float("inf")}, PrivacyError, "expected max_epsilon as a finite number"),
        ({"max_epsilon": 0.0}, PrivacyError, "expected max_epsilon as a finite number above 0"),
        ({"delta": float("nan")}, PrivacyError, "expected delta as a finite number above 0"),
        ({"delta": 1e-4}, PrivacyError, "expected delta < 1/N = 0.0001 for up to 10000 records"),
    ],
)
def test_a_debit_is_checked(
    ledger: Ledger, changes: dict[str, Any], error: type[PrivacyError], message: str
) -> None:
    with pytest.raises(error, match=message):
        reserve(ledger, **changes)
    assert ledger.head().sequence == 1


# Settling


def test_more_than_was_reserved_is_refused(ledger: Ledger) -> None:
    sequence = reserve(ledger)
    message = "expected at most the 100 steps of entry 2, got 101\nhint: more ran than was debited"
    with pytest.raises(LedgerError, match=message):
        ledger.settle(sequence, 101)
    ledger.settle(sequence, 100)


def test_a_reserve_is_settled_once(ledger: Ledger) -> None:
    sequence = reserve(ledger)
    ledger.settle(sequence, 7)
    with pytest.raises(LedgerError, match="expected entry 2 to be open, got one that is settled"):
        ledger.settle(sequence, 7)


@pytest.mark.parametrize("sequence", [0, 1, 3])
def test_only_a_reserve_is_settled(ledger: Ledger, sequence: int) -> None:
    reserve(ledger)
    with pytest.raises(LedgerError, match=f"expected entry {sequence} to be a reserve, got none"):
        ledger.settle(sequence, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, -1, "completed"), "expected executed_steps as an integer from 0, got -1"),
        ((2, 1.5, "completed"), "expected executed_steps as an integer from 0, got 1.5"),
        (("2", 1, "completed"), "expected the reserve's sequence as an integer from 0, got '2'"),
        ((2, 1, "Loss was 3.2"), "expected outcome to match"),
    ],
)
def test_a_settlement_is_checked(ledger: Ledger, arguments: Any, message: str) -> None:
    reserve(ledger)
    with pytest.raises(LedgerError, match=message):
        ledger.settle(*arguments)
    assert ledger.head().sequence == 2


def test_a_run_without_privacy_announces_no_steps(ledger: Ledger) -> None:
    ledger.settle(reserve(ledger, NonPrivateEvent("no-privacy")), 10**6)


# Tampering


def stored_rows(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes
        return connection.execute("SELECT * FROM entries ORDER BY sequence").fetchall()


def test_any_changed_byte_of_any_entry_is_found(written: Path) -> None:
    rows = stored_rows(written)
    public_key = SiteKey.load(beside(written, ".key")).public_hex
    before = [None, *verify_chain(rows, None, public_key)]
    changed = 0
    for row, previous in zip(rows, before, strict=False):
        for column, value in enumerate(row[1:], start=1):
            for index in range(len(value)):
                data = bytearray(value)
                data[index] ^= 1 << (index % 8)
                other = (*row[:column], bytes(data), *row[column + 1 :])
                with pytest.raises(LedgerTamperedError):
                    verify_chain([other], previous, public_key)
                changed += 1
    assert changed > 1000


@pytest.mark.parametrize("column", COLUMNS[1:])
def test_opening_looks_at_every_column_of_every_entry(written: Path, column: str) -> None:
    for row in stored_rows(written):
        value = row[COLUMNS.index(column)]
        update = f"UPDATE entries SET {column} = CAST(? AS TEXT) WHERE sequence = ?"
        sql(written, update, bytes([value[0] ^ 1]) + value[1:], row[0])
        with pytest.raises(LedgerTamperedError):
            reopen(written)
        sql(written, update, value, row[0])
    reopen(written)


def test_upper_case_digits_are_found(written: Path) -> None:
    for column in ("hash", "previous", "signature"):
        (original,) = sql(written, f"SELECT {column} FROM entries WHERE sequence = 3")[0]
        sql(written, f"UPDATE entries SET {column} = ? WHERE sequence = 3", original.upper())
        with pytest.raises(LedgerTamperedError, match="expected entry 3 "):
            reopen(written)
        sql(written, f"UPDATE entries SET {column} = ? WHERE sequence = 3", original)
    reopen(written)


def test_damage_in_the_file_is_found(written: Path) -> None:
    data = written.read_bytes()
    for text in (b"reserve", b"noise_multiplier", b"CREATE TABLE", b"SQLite format"):
        at = data.index(text)
        written.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(LedgerTamperedError):
            reopen(written)
    written.write_bytes(data)
    reopen(written)


def test_a_database_that_is_none_is_found(written: Path) -> None:
    written.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(LedgerTamperedError, match=r"expected the ledger .* to be whole, got: file"):
        reopen(written)


def test_swapped_entries_are_found(written: Path) -> None:
    for move in ("-2 WHERE sequence = 2", "2 WHERE sequence = 3", "3 WHERE sequence = -2"):
        sql(written, f"UPDATE entries SET sequence = {move}")
    with pytest.raises(LedgerTamperedError, match="expected entry 2 to match its hash"):
        reopen(written)


def test_a_missing_entry_is_found(written: Path) -> None:
    sql(written, "DELETE FROM entries WHERE sequence = 2")
    with pytest.raises(LedgerTamperedError, match="expected entry 2 of the ledger, got 3"):
        reopen(written)


def test_an_entry_before_the_first_is_found(written: Path) -> None:
    sql(
        written,
        "INSERT INTO entries SELECT 0, time, kind, body, previous, hash, signature "
        "FROM entries WHERE sequence = 1",
    )
    with pytest.raises(LedgerTamperedError, match="expected entry 1 of the ledger, got 0"):
        reopen(written)


@pytest.mark.parametrize("body", ["{", "[]", '{"a":NaN}', '{"a": 1}', "[" * 100_000, "\x00"])
def test_junk_in_an_entry_is_found(written: Path, body: str) -> None:
    sql(written, "UPDATE entries SET body = ? WHERE sequence = 2", body)
    with pytest.raises(LedgerTamperedError, match="expected entry 2 to "):
        reopen(written)


@pytest.mark.parametrize("change", [('":', '": '), ('{"attempt":1', '{"attempt":2,"attempt":1')])
def test_an_entry_has_one_form(written: Path, change: tuple[str, str]) -> None:
    """The same content, written otherwise."""
    (body,) = sql(written, "SELECT body FROM entries WHERE sequence = 2")[0]
    other = body.replace(*change, 1)
    assert other != body
    assert json.loads(other) == json.loads(body)
    sql(written, "UPDATE entries SET body = ? WHERE sequence = 2", other)
    with pytest.raises(LedgerTamperedError, match="expected entry 2 to match its hash"):
        reopen(written)


def test_an_entry_that_follows_another_past_is_found(written: Path) -> None:
    """Signed with the right key, as a copy of the ledger would have gone on."""
    key = SiteKey.load(beside(written, ".key"))
    last = reopen_entries(written)[-1]
    other = replace(last, digest="1" * 64)
    entry = next_entry(other, "reserve", last.body, time=last.time, key=key)
    sql(written, "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", *entry.row())
    with pytest.raises(LedgerTamperedError, match="expected entry 5 to follow the entry before it"):
        reopen(written)


def test_a_chain_that_another_key_signed_is_found(written: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "ledger.sqlite"
    with Ledger.open(other, site="north") as ledger:
        reserve(ledger)
    shutil.copy(other, written)
    with pytest.raises(LedgerTamperedError, match="expected entry 1 signed with the site's key"):
        reopen(written)


def test_an_entry_in_an_unknown_form_is_refused(written: Path) -> None:
    key = SiteKey.load(beside(written, ".key"))
    last = reopen_entries(written)[-1]
    entry = next_entry(last, "settle", {"refund": 1.0}, time=last.time, key=key)
    sql(written, "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", *entry.row())
    with pytest.raises(LedgerTamperedError, match="entry 5 with the fields of kind 'settle'"):
        reopen(written)


def reopen_entries(path: Path) -> Any:
    with Ledger.open(path, site="north") as ledger:
        return ledger.entries()


def test_an_unknown_event_is_refused(written: Path) -> None:
    key = SiteKey.load(beside(written, ".key"))
    last = reopen_entries(written)[-1]
    body = {**last.body, "event": {"kind": "dp-ftrl"}}
    entry = next_entry(last, "reserve", body, time=last.time, key=key)
    sql(written, "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", *entry.row())
    with pytest.raises(LedgerError, match="expected an event of kind"):
        reopen(written)


def test_a_trigger_is_found(written: Path) -> None:
    sql(written, "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries; END")
    with pytest.raises(LedgerTamperedError, match="expected the one table of a ledger in"):
        reopen(written)


def test_another_sites_ledger_is_refused(written: Path) -> None:
    with pytest.raises(LedgerTamperedError):
        Ledger.open(written, site="south")


def test_a_name_that_no_site_has_is_refused(path: Path) -> None:
    with pytest.raises(LedgerError, match="expected a site's name, got 'North/1'"):
        Ledger.open(path, site="North/1")
    assert list(path.parent.iterdir()) == []


# Rollback


def test_an_older_copy_is_found(written: Path, tmp_path: Path) -> None:
    shutil.copy(written, tmp_path / "old")
    with Ledger.open(written, site="north") as ledger:
        reserve(ledger, server_round=3)
    shutil.copy(tmp_path / "old", written)
    message = "expected at least the 5 entries that its witness file remembers, got a ledger of 4"
    with pytest.raises(LedgerRollbackError, match=message):
        reopen(written)


def test_cut_off_entries_are_found(written: Path) -> None:
    for sequence in (4, 3, 2, 1):
        sql(written, "DELETE FROM entries WHERE sequence = ?", sequence)
        with pytest.raises(LedgerRollbackError, match="expected at least the 4 entries"):
            reopen(written)


def test_another_past_is_found(written: Path, tmp_path: Path) -> None:
    """A copy is used, and then the original goes on with its own next entry."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for ending in ("", ".key", ".witness"):
        shutil.copy(beside(written, ending), folder)
    with Ledger.open(folder / written.name, site="north") as ledger:
        reserve(ledger, server_round=8)
    with Ledger.open(written, site="north") as ledger:
        reserve(ledger, server_round=9)
    shutil.copy(beside(folder / written.name, ".witness"), beside(written, ".witness"))
    with pytest.raises(LedgerRollbackError, match="expected entry 5 as its witness file remembers"):
        reopen(written)


@pytest.mark.parametrize("left", [(".key",), (".witness",), (".key", ".witness")])
def test_a_lost_database_is_not_started_again(written: Path, left: tuple[str, ...]) -> None:
    for ending in {"", ".key", ".witness"} - set(left):
        beside(written, ending).unlink()
    message = r"expected the ledger .*ledger\.sqlite, got only .*\nhint: restore all files"
    with pytest.raises(LedgerRollbackError, match=message):
        reopen(written)
    assert not written.exists()


def test_a_lost_witness_is_not_made_again(written: Path) -> None:
    beside(written, ".witness").unlink()
    with pytest.raises(LedgerRollbackError, match=r"expected the ledger's witness .*No such file"):
        reopen(written)


def test_a_lost_key_is_not_made_again(written: Path) -> None:
    beside(written, ".key").unlink()
    with pytest.raises(SiteKeyError, match="expected a key file at"):
        reopen(written)


def test_a_key_that_others_can_read_is_refused(written: Path) -> None:
    beside(written, ".key").chmod(0o644)
    with pytest.raises(SiteKeyError, match="readable by its owner only, got mode 0644"):
        reopen(written)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["head"].update(sequence=1),
        lambda document: document["head"].update(digest=NO_DIGEST),
        lambda document: document.update(site="south"),
        lambda document: document.update(extra=1),
        lambda document: document.update(signature=document["signature"].upper()),
        lambda document: document.pop("signature"),
        lambda document: document.pop("head"),
    ],
)
def test_a_changed_witness_is_found(written: Path, change: Callable[[Any], object]) -> None:
    witness = beside(written, ".witness")
    document = json.loads(witness.read_bytes())
    change(document)
    witness.write_bytes(canonical_json(document))
    with pytest.raises(LedgerTamperedError, match=r"expected .* witness"):
        reopen(written)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_junk_in_the_witness_is_found(written: Path, data: bytes) -> None:
    beside(written, ".witness").write_bytes(data)
    with pytest.raises(LedgerTamperedError, match=r"expected a witness in .*, got junk"):
        reopen(written)


def test_a_peer_that_remembers_this_past_is_satisfied(ledger: Ledger) -> None:
    heads = [LedgerHead(sequence=0, digest=NO_DIGEST), ledger.head()]
    for server_round in (1, 2):
        reserve(ledger, server_round=server_round)
        heads.append(ledger.head())
    for head in heads:
        ledger.check_witness(head)


def test_a_peer_that_remembers_more_is_right(ledger: Ledger) -> None:
    message = (
        "expected at least the 2 entries that a peer remembers, got a ledger of 1\nhint: an ol"
    )
    with pytest.raises(LedgerRollbackError, match=message):
        ledger.check_witness(LedgerHead(sequence=2, digest="1" * 64))


@pytest.mark.parametrize("sequence", [0, 1])
def test_a_peer_that_remembers_another_past_is_right(ledger: Ledger, sequence: int) -> None:
    message = f"expected entry {sequence} as a peer remembers it, got another past\nhint: two"
    with pytest.raises(LedgerRollbackError, match=message):
        ledger.check_witness(LedgerHead(sequence=sequence, digest="1" * 64))


def test_a_file_exchanged_while_open_is_found(written: Path, tmp_path: Path) -> None:
    with Ledger.open(written, site="north") as ledger:
        shutil.copy(written, tmp_path / "copy")
        os.replace(tmp_path / "copy", written)
        with pytest.raises(LedgerRollbackError, match="as it was opened, got another file in its"):
            reserve(ledger, server_round=3)


def test_entries_lost_while_open_are_found(ledger: Ledger, path: Path) -> None:
    reserve(ledger)
    sql(path, "DELETE FROM entries WHERE sequence = 2")
    with pytest.raises(LedgerRollbackError, match="to keep its entry 2, got a shorter or another"):
        reserve(ledger)


# A disk that fails


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = (
        r"expected to read and write the ledger .*: (Not a directory|File exists)\nhint: nothi"
    )
    with pytest.raises(LedgerError, match=message):
        Ledger.open(tmp_path / "file" / "ledger.sqlite", site="north")


def test_a_full_disk_refuses_and_writes_nothing(ledger: Ledger) -> None:
    """SQLite's own limit makes the same error as a disk without room."""
    reserve(ledger)
    assert ledger._store is not None
    ledger._store._connection.execute("PRAGMA max_page_count = 1")
    kept: list[int] = []

    def fill() -> None:
        for server_round in range(2, 40):
            kept.append(reserve(ledger, server_round=server_round))

    with pytest.raises(LedgerError, match="got: database or disk is full\nhint: nothing was rele"):
        fill()
    assert len(kept) < 38
    assert len(ledger.entries()) == 2 + len(kept)
    ledger._store._connection.execute("PRAGMA max_page_count = 1000")
    reserve(ledger)


def test_a_witness_that_cannot_be_written_fails_but_keeps_the_debit(
    ledger: Ledger, path: Path
) -> None:
    beside(path, ".witness.new").mkdir()
    with pytest.raises(
        LedgerError, match=r"expected to read and write the ledger .*Is a directory"
    ):
        reserve(ledger)
    beside(path, ".witness.new").rmdir()
    assert ledger.head().sequence == 2
    assert ledger.spent(DELTA) == epsilon_report([ROUND], DELTA)
    assert len(reopen_entries(path)) == 2
    assert json.loads(beside(path, ".witness").read_bytes())["head"]["sequence"] == 2


def test_a_ledger_that_was_cut_short_while_it_was_made_is_completed(written: Path) -> None:
    """The database is named before its key and its witness are."""
    for ending in (".witness", ".key"):
        os.replace(beside(written, ending), beside(written, ending + ".new"))
        assert reopen_entries(written)[0].kind == "open"


def test_a_ledger_cut_short_before_it_was_named_starts_anew(path: Path) -> None:
    for ending in (".new", ".key.new", ".witness.new"):
        beside(path, ending).write_bytes(b"half of it")
    assert len(reopen_entries(path)) == 1


# Who may use it


def test_a_closed_ledger_says_so(path: Path) -> None:
    ledger = Ledger.open(path, site="north")
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match=r"expected the ledger .* to be open, got a closed one"):
        reserve(ledger)


def test_a_fork_is_refused(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(LedgerError, match="in the process that opened it, got a fork\nhint: open"):
        ledger.head()


def test_two_objects_see_each_others_debits(ledger: Ledger, path: Path) -> None:
    with Ledger.open(path, site="north") as other:
        reserve(other)
        assert ledger.head() == other.head()
        reserve(ledger, server_round=2)
        assert other.spent(DELTA) == epsilon_report([ROUND] * 2, DELTA)


@pytest.mark.parametrize("objects", [1, 4])
def test_threads_never_pass_the_cap_together(path: Path, objects: int) -> None:
    cap = epsilon_report([ROUND] * 5, DELTA).epsilon
    ledgers = [Ledger.open(path, site="north") for _ in range(objects)]
    start = threading.Barrier(4)

    def work(index: int) -> int:
        start.wait()
        kept = 0
        for server_round in range(3):
            try:
                reserve(ledgers[index % objects], server_round=server_round, max_epsilon=cap)
                kept += 1
            except BudgetExceededError:
                pass
        return kept

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 5
    assert ledgers[0].spent(DELTA).epsilon == cap
    for ledger in ledgers:
        ledger.close()
    assert len(reopen_entries(path)) == 6


def test_threads_that_open_first_make_one_ledger(path: Path) -> None:
    start = threading.Barrier(4)

    def work(_: int) -> LedgerHead:
        start.wait()
        with Ledger.open(path, site="north") as ledger:
            return ledger.head()

    with ThreadPoolExecutor(4) as pool:
        assert len({head.digest for head in pool.map(work, range(4))}) == 1


def test_steps_far_below_the_cap_never_ask_the_slow_accountant(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    monkeypatch.setattr("privacy.accounting.pld_epsilon", lambda *asked, **_: calls.append(asked))
    for server_round in range(1, 10):
        reserve(ledger, replace(ROUND, steps=10), server_round=server_round)
    assert calls == []
