"""The app with an outbox: debited once, computed once, sent as often as it takes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

import client.app as module
from client.app import build_client_app
from client.outbox import Outbox
from coordinator.flower import instruction
from coordinator.payload import to_record
from core.errors import VaultError
from core.messages import LedgerHead, Refusal, TrainReply, TrainTask, decode, encode
from privacy.vault import Vault
from tests.support.site import SiteAtWork, make_site


def ask(at_work: SiteAtWork, outbox: Outbox | None, order: TrainTask) -> RecordDict:
    app = build_client_app(lambda _: at_work.site, at_work.workshop, outbox)
    content = RecordDict(
        {"task": ConfigRecord({"task": encode(order)}), "arrays": to_record(at_work.arrays)}
    )
    message = instruction(content, run_id=1, message_id="1", dst_node_id=7, message_type="train")
    reply: Message = app(message, Context(1, 7, {}, RecordDict(), {}))
    return reply.content


def the_reply(content: RecordDict) -> TrainReply:
    return decode(TrainReply, content["reply"]["reply"])  # type: ignore[index]


def the_refusal(content: RecordDict) -> Refusal:
    assert set(content) == {"refusal"}
    return decode(Refusal, content["refusal"]["refusal"])  # type: ignore[index]


def kinds(at_work: SiteAtWork) -> list[str]:
    with at_work.site.open_ledger() as ledger:
        return [entry.kind for entry in ledger.entries()]


@pytest.fixture
def at_work(tmp_path: Path) -> SiteAtWork:
    return make_site(tmp_path)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox", Vault(bytes(32)))


def test_a_second_attempt_gets_the_same_reply_without_training_or_debit(
    at_work: SiteAtWork, outbox: Outbox
) -> None:
    first = ask(at_work, outbox, at_work.order)
    second = ask(at_work, outbox, at_work.change(attempt=2))
    assert the_reply(second) == the_reply(first).model_copy(update={"attempt": 2})
    assert {n: a.data for n, a in second["arrays"].items()} == {  # type: ignore[union-attr]
        n: a.data  # type: ignore[union-attr]
        for n, a in first["arrays"].items()
    }
    assert kinds(at_work) == ["open", "reserve", "settle"]


def test_after_it_is_settled_the_ledger_refuses_the_round(
    at_work: SiteAtWork, outbox: Outbox
) -> None:
    ask(at_work, outbox, at_work.order)
    outbox.settle(at_work.order.run_id, 1)
    assert the_refusal(ask(at_work, outbox, at_work.order)).code == "message"
    assert kinds(at_work) == ["open", "reserve", "settle"]


def test_a_policy_that_changed_since_keeps_the_reply_at_the_site(
    at_work: SiteAtWork, outbox: Outbox
) -> None:
    ask(at_work, outbox, at_work.order)
    strict = at_work.site.policy.model_copy(update={"allowed_tasks": ()})
    at_work.site = replace(at_work.site, policy=strict)
    assert the_refusal(ask(at_work, outbox, at_work.order)).code == "policy-refused"


def test_a_ledger_that_forgot_the_debit_keeps_the_reply_at_the_site(
    at_work: SiteAtWork, outbox: Outbox, tmp_path: Path
) -> None:
    """Restored from an older copy, or lost with all that remembers it."""
    copies = {}
    with at_work.site.open_ledger():
        pass
    for path in tmp_path.glob("ledger.sqlite*"):
        copies[path] = path.read_bytes()
    ask(at_work, outbox, at_work.order)
    for path in tmp_path.glob("ledger.sqlite*"):
        path.unlink()
    for path, data in copies.items():
        path.write_bytes(data)
        path.chmod(0o600)
    refusal = the_refusal(ask(at_work, outbox, at_work.change(attempt=2)))
    assert (refusal.code, refusal.message) == ("ledger-rollback", "see the site's own log")


def test_a_ledger_that_the_coordinator_remembers_longer_keeps_the_reply_at_the_site(
    at_work: SiteAtWork, outbox: Outbox
) -> None:
    ask(at_work, outbox, at_work.order)
    witness = LedgerHead(sequence=9, digest="9" * 64)
    refusal = the_refusal(ask(at_work, outbox, at_work.change(attempt=2, ledger_witness=witness)))
    assert refusal.code == "ledger-rollback"


def test_the_reply_is_kept_before_it_is_given_out(
    at_work: SiteAtWork, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the debit comes before both."""
    seen: list[Any] = []
    real = Outbox.keep

    def keep(self: Outbox, order: TrainTask, reply: TrainReply, arrays: Any) -> None:
        seen.append(kinds(at_work))
        real(self, order, reply, arrays)

    monkeypatch.setattr(Outbox, "keep", keep)
    ask(at_work, outbox, at_work.order)
    assert seen == [["open", "reserve", "settle"]]
    assert outbox.find(at_work.order) is not None


def test_a_reply_that_cannot_be_kept_is_not_sent(
    at_work: SiteAtWork, outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Outbox, order: TrainTask, reply: TrainReply, arrays: Any) -> None:
        raise VaultError("expected to write /srv/identity/outbox, got: No space left on device")

    monkeypatch.setattr(Outbox, "keep", full)
    refusal = the_refusal(ask(at_work, outbox, at_work.order))
    assert (refusal.code, refusal.message) == ("round-failed", "see the site's own log")
    assert "/srv" not in refusal.model_dump_json()


def test_a_damaged_outbox_refuses_by_name_and_debits_nothing(
    at_work: SiteAtWork, outbox: Outbox, tmp_path: Path
) -> None:
    (tmp_path / "outbox" / f"{at_work.order.run_id}.reply").write_bytes(b"damaged")
    refusal = the_refusal(ask(at_work, outbox, at_work.order))
    assert (refusal.code, refusal.message) == ("vault", "see the site's own log")
    assert not (tmp_path / "ledger.sqlite").exists()


def test_what_fails_after_the_debit_leaves_as_one_fixed_text(
    at_work: SiteAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether gradients overflow or a disk fails may follow from records, so it does not show."""
    answers = set()
    for number, error in enumerate((ValueError("row 17 is odd"), OSError(5, "gone")), start=1):

        def fail(self: Any, *arguments: Any, error: Exception = error, **named: Any) -> None:
            raise error

        monkeypatch.setattr("privacy.modes.LocalDp.train", fail)
        refusal = the_refusal(ask(at_work, None, at_work.change(attempt=number)))
        answers.add((refusal.code, refusal.message, refusal.hint))
    assert answers == {("round-failed", "see the site's own log", "")}
    assert kinds(at_work) == ["open", "reserve", "reserve"]


def test_nothing_raw_leaves_the_app(
    at_work: SiteAtWork, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("patient 17")

    monkeypatch.setattr(module, "local_round", fail)
    refusal = the_refusal(ask(at_work, None, at_work.order))
    assert (refusal.code, refusal.message) == ("round-failed", "see the site's own log")
    assert "patient 17" in caplog.text  # the site's own log
