"""An audit at a site: what it is asked, what it pays, and what alone it gives out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

import client.audit_round as module
from client.app import build_client_app
from client.content import documents_content
from coordinator.flower import instruction
from core.array_codec import encode_arrays
from core.audit_messages import AUDIT, AuditedAttribute, AuditOrder, AuditReply
from core.data.held_out import Split
from core.data.records import Record, Subset, iterate
from core.errors import (
    BudgetExceededError,
    CloisterError,
    LedgerRollbackError,
    MessageError,
    PolicyRefusedError,
    RoundFailedError,
)
from core.messages import LedgerHead, Refusal, decode, encode
from core.record_counts import count, score_records
from tests.support.audited_site import (
    LANGUAGE_MODEL,
    WITHOUT_PRIVACY,
    AuditedSite,
    make_audited_site,
)

NON_PRIVATE = {"allow_non_private": True}


@pytest.fixture
def at_work(tmp_path: Path) -> AuditedSite:
    return make_audited_site(tmp_path)


def ask(at_work: AuditedSite, document: bytes | None = None) -> tuple[str, Any]:
    """The one record of the app's answer: its name and what stands in it."""
    app = build_client_app(lambda _: at_work.site, at_work.workshop)
    content = documents_content({"audit": at_work.order}, encode_arrays(at_work.arrays))
    if document is not None:
        content["audit"] = ConfigRecord({"audit": document})
    message = instruction(content, run_id=1, message_id="1", dst_node_id=7, message_type=AUDIT)
    reply: Message = app(message, Context(1, 7, {}, RecordDict(), {}))
    ((name, record),) = reply.content.items()
    assert isinstance(record, ConfigRecord)
    assert set(record) == {name}
    return name, record[name]


def exact(at_work: AuditedSite) -> tuple[list[int], list[int]]:
    """The counts of the order, computed apart from the site."""
    assert at_work.site.split is not None
    model = at_work.workshop.blueprint.build().eval()
    task = at_work.workshop.blueprint.task
    scored = score_records(model, task, at_work.site.split, torch.device("cpu"))
    found = count(scored, at_work.order.shape)
    return found.cells.ravel().tolist(), found.histogram.ravel().tolist()


def test_an_order_is_answered_with_noised_counts(at_work: AuditedSite) -> None:
    name, document = ask(at_work)
    assert name == "counts"
    reply = decode(AuditReply, document)
    cells, histogram = exact(at_work)
    assert len(reply.cells) == len(cells) == 16
    assert len(reply.histogram) == len(histogram)
    assert (list(reply.cells), list(reply.histogram)) != (cells, histogram)
    scale = 2 / at_work.config.audit.epsilon
    assert reply.scale == scale
    noise = np.array([*reply.cells, *reply.histogram]) - np.array([*cells, *histogram])
    assert np.abs(noise).max() < 20 * scale
    assert np.abs(noise).mean() == pytest.approx(scale, rel=0.6)
    assert reply.spent.private
    assert reply.spent.epsilon == pytest.approx(at_work.config.audit.epsilon, rel=0.05)
    assert reply.cosignature == ""


def test_each_release_is_debited_and_settled(at_work: AuditedSite) -> None:
    reply = at_work.answer()
    entries = at_work.entries()
    assert [entry.kind for entry in entries] == ["reserve", "reserve", "settle", "settle"]
    for number, entry in enumerate(entries[:2], start=1):
        assert entry.body["event"] == {"kind": "laplace-counts", "scale": 4.0}
        assert entry.body["run_id"] == at_work.order.debit_id != at_work.order.run_id
        assert (entry.body["server_round"], entry.body["attempt"]) == (1, number)
        assert entry.body["task_digest"] == at_work.order.task_digest
    assert reply.ledger_head.sequence == 5


def test_nothing_is_computed_before_the_debit(
    at_work: AuditedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    paid: list[int] = []

    def look(*arguments: Any) -> Any:
        paid.append(len(at_work.entries()))
        raise RuntimeError("record 17 of Mrs Miller")

    monkeypatch.setattr(module, "score_records", look)
    with pytest.raises(RoundFailedError) as failure:
        at_work.answer()
    assert paid == [2]
    assert "Miller" not in str(failure.value)
    at_work.order = at_work.order.model_copy(update={"attempt": 2})
    name, document = ask(at_work)
    assert name == "refusal"
    refusal = decode(Refusal, document)
    assert (refusal.code, refusal.message) == ("round-failed", "see the site's own log")


def test_an_order_is_answered_once(at_work: AuditedSite) -> None:
    at_work.answer()
    with pytest.raises(MessageError, match="expected an order after round 1"):
        at_work.answer()
    assert len(at_work.entries()) == 4
    again = at_work.answer(attempt=2)
    assert len(at_work.entries()) == 8
    assert again.spent.epsilon == pytest.approx(2 * at_work.config.audit.epsilon, rel=0.05)


def test_what_the_run_was_debited_for_goes_on_beside_it(at_work: AuditedSite) -> None:
    at_work.answer()
    with at_work.site.open_ledger() as ledger:
        assert ledger.last_order(at_work.order.run_id) is None
        assert ledger.last_order(at_work.order.debit_id) == (1, 2)


def _attribute(name: str, *values: str) -> tuple[AuditedAttribute, ...]:
    return (AuditedAttribute(name=name, values=values),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes": _attribute("sex", "female", "other")}, "audit.attributes"),
        ({"attributes": _attribute("town", "female", "male")}, "audit.attributes"),
        ({"attributes": _attribute("sex", "male", "female")}, "audit.attributes"),
        ({"attributes": ()}, "audit.attributes"),
        ({"labels": ("storm", "calm")}, "labels"),
        ({"edges": (0.0, 0.01, 1.0)}, "edges of the histogram"),
        ({"epsilon": 5.0}, "audit.epsilon"),
        ({"epsilon": 0.1}, "audit.epsilon"),
        ({"site": "south"}, "expected a task for north"),
        ({"task_digest": "1" * 64}, "expected terms with the hash"),
    ],
)
def test_a_question_that_is_not_the_installed_one_is_refused(
    at_work: AuditedSite, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PolicyRefusedError, match=message):
        at_work.answer(**changes)
    assert at_work.entries() == []


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"audit": "off"}, "expected nothing to be counted"),
        ({"allowed_tasks": ("2" * 64,)}, "expected a task that this site approved"),
        ({"max_rounds": 1}, "expected rounds of at most 1"),
        ({"max_grad_norm": 0.5}, "max_grad_norm"),
    ],
)
def test_what_the_policy_does_not_allow_is_refused(
    at_work: AuditedSite, policy: dict[str, Any], message: str
) -> None:
    at_work.policy(**policy)
    with pytest.raises(PolicyRefusedError, match=message):
        at_work.answer()
    assert at_work.entries() == []


@pytest.mark.parametrize("missing", ["audit", "split"])
def test_a_site_that_knows_of_no_audit_refuses(at_work: AuditedSite, missing: str) -> None:
    changes: dict[str, Any] = {missing: None}
    at_work.site = replace(at_work.site, **changes)
    with pytest.raises(PolicyRefusedError, match="knows what may be counted"):
        at_work.answer()


def test_other_weights_than_named_are_refused(at_work: AuditedSite) -> None:
    with pytest.raises(MessageError, match="expected the weights that the order names"):
        at_work.answer(arrays_digest="3" * 64)
    assert at_work.entries() == []


def test_past_the_cap_nothing_is_counted(
    at_work: AuditedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "score_records", lambda *arguments: pytest.fail("it was counted"))
    at_work.policy(max_epsilon=0.3)  # room for the first release, and not for both
    with pytest.raises(BudgetExceededError):
        at_work.answer()
    assert [entry.kind for entry in at_work.entries()] == ["reserve"]


def test_a_ledger_that_was_set_back_is_not_debited(at_work: AuditedSite) -> None:
    head = LedgerHead(sequence=9, digest="4" * 64)
    with pytest.raises(LedgerRollbackError):
        at_work.answer(ledger_witness=head)
    assert at_work.entries() == []


# Runs that are not private


def test_without_privacy_the_counts_are_exact_and_said_to_be(tmp_path: Path) -> None:
    at_work = make_audited_site(tmp_path, federation=WITHOUT_PRIVACY, policy=NON_PRIVATE)
    reply = at_work.answer()
    assert (list(reply.cells), list(reply.histogram)) == exact(at_work)
    assert reply.scale is None
    assert not reply.spent.private
    assert at_work.entries()[0].body["event"]["kind"] == "non-private"


def test_exact_counts_need_a_policy_that_allows_them(tmp_path: Path) -> None:
    at_work = make_audited_site(tmp_path, federation=WITHOUT_PRIVACY)
    with pytest.raises(PolicyRefusedError, match="expected a run with privacy"):
        at_work.answer()
    assert at_work.entries() == []


def test_exact_counts_never_come_from_a_private_ledger(tmp_path: Path) -> None:
    private = make_audited_site(tmp_path)
    private.answer()
    at_work = make_audited_site(tmp_path, federation=WITHOUT_PRIVACY, policy=NON_PRIVATE)
    with pytest.raises(BudgetExceededError, match="private or of non-private events only"):
        at_work.answer(run_id="0" * 15 + "2")
    assert len(at_work.entries()) == 4


def test_under_test_noise_the_same_comes_again(tmp_path: Path) -> None:
    policy = {"allow_test_noise": True}
    replies = [
        make_audited_site(tmp_path / name, policy=policy, test_noise=True).answer()
        for name in ("a", "b")
    ]
    assert replies[0].cells == replies[1].cells
    assert replies[0].scale == 4.0
    assert not replies[0].spent.private


def test_test_noise_needs_a_policy_that_allows_it(tmp_path: Path) -> None:
    at_work = make_audited_site(tmp_path, test_noise=True)
    with pytest.raises(PolicyRefusedError, match="test key"):
        at_work.answer()


# What is counted


def test_a_language_model_has_a_histogram_alone(tmp_path: Path) -> None:
    at_work = make_audited_site(tmp_path, federation=LANGUAGE_MODEL)
    reply = at_work.answer()
    assert reply.cells == ()
    assert reply.scale == 1 / at_work.config.audit.epsilon
    assert [entry.kind for entry in at_work.entries()] == ["reserve", "settle"]


def test_a_site_without_the_column_answers_like_any_other(tmp_path: Path) -> None:
    at_work = make_audited_site(tmp_path, federation=WITHOUT_PRIVACY, policy=NON_PRIVATE)
    split = at_work.site.split
    assert split is not None
    members, held_out = (
        [replace(record, groups={}) for record in iterate(part)]
        for part in (split.members, split.held_out)
    )
    at_work.site = replace(
        at_work.site,
        split=Split(Subset(members, range(len(members))), Subset(held_out, range(len(held_out)))),
    )
    reply = at_work.answer()
    assert set(reply.cells) == {0}
    assert sum(reply.histogram) == 48


words = st.text("abcdef ", min_size=1, max_size=24)
rows = st.builds(
    Record,
    text=words,
    label=st.sampled_from(["calm", "storm"]),
    person=words,
    groups=st.dictionaries(
        st.sampled_from(["sex", "age"]), st.sampled_from(["male", "female", "x"])
    ),
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> AuditedSite:
    return make_audited_site(tmp_path_factory.mktemp("site"))


@given(records=st.lists(rows, max_size=5), one=rows, place=st.integers(0, 5), side=st.booleans())
def test_one_record_moves_one_cell_and_one_bin_by_one(
    shared: AuditedSite, records: list[Record], one: Record, place: int, side: bool
) -> None:
    """On the real model, from its weights to the counts."""
    model = shared.workshop.own_model().eval()

    def counted(part: list[Record]) -> Any:
        whole, empty = Subset(part, range(len(part))), Subset(part, ())
        split = Split(empty, whole) if side else Split(whole, empty)
        return module._count(model, shared.workshop, split, shared.order.shape)

    without, with_it = counted(records), counted([*records[:place], one, *records[place:]])
    assert np.abs(with_it.cells - without.cells).sum() == (
        one.groups.get("sex") in ("male", "female")
    )
    assert np.abs(with_it.histogram - without.histogram).sum() == 1


# The log's checkpoint


def test_a_checkpoint_is_signed_by_whoever_keeps_the_log(at_work: AuditedSite) -> None:
    at_work.site = replace(at_work.site, witness=lambda text: f"signed {text}")
    assert at_work.answer(checkpoint="{}").cosignature == "signed {}"
    assert at_work.answer(attempt=2).cosignature == ""


def test_a_checkpoint_that_is_not_signed_costs_nothing(at_work: AuditedSite) -> None:
    def refuse(text: str) -> str:
        raise MessageError("expected a log that goes on, got another")

    at_work.site = replace(at_work.site, witness=refuse)
    with pytest.raises(MessageError, match="a log that goes on"):
        at_work.answer(checkpoint="{}")
    assert at_work.entries() == []


# The message


@given(junk=st.binary(max_size=200))
def test_junk_is_refused_by_name(shared: AuditedSite, junk: bytes) -> None:
    name, document = ask(shared, junk)
    assert name == "refusal"
    assert decode(Refusal, document).code == "message"


@pytest.mark.parametrize(
    "changes",
    [
        {"edges": (0.0, 2.0, 1.0)},
        {"edges": (0.0, 1.0)},
        {"attempt": 0},
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"attributes": (*_attribute("sex", "f", "m"), *_attribute("age", "a", "b"))},
        {"attributes": _attribute("sex", "f", "f")},
        {
            "attributes": tuple(
                AuditedAttribute(name=name, values=tuple(f"v{n}" for n in range(32)))
                for name in ("a", "b", "c")
            )
        },
        {"checkpoint": "x" * 200_000},
    ],
)
def test_an_order_that_cannot_be_is_not_read(at_work: AuditedSite, changes: dict[str, Any]) -> None:
    wrong = at_work.order.model_copy(update=changes)
    with pytest.raises(CloisterError):
        decode(AuditOrder, encode(wrong))


def test_an_order_survives_the_wire(at_work: AuditedSite) -> None:
    assert decode(AuditOrder, encode(at_work.order)) == at_work.order
