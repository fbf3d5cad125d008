"""Orders and answers over any number of sessions."""

import time
from dataclasses import replace

import pytest

from client.desk import MAX_WAITING, Desk
from core.messages import Refusal, decode, encode
from core.wire.frames import Received
from core.wire.transfer import Envelope, Rejected
from tests.support.messages import TASK
from tests.support.wire_site import reply_to


def order(number: int = 1, **changes: object) -> Envelope:
    envelope = Envelope(
        message_id=f"{number:032x}",
        reply_to="",
        message_type="train",
        group_id="4",
        run_number=7,
        ttl_seconds=60.0,
        created_at=time.time(),
        documents={"task": encode(TASK)},
    )
    return replace(envelope, **changes)  # type: ignore[arg-type]


@pytest.fixture
def begun() -> list[Envelope]:
    return []


@pytest.fixture
def desk(begun: list[Envelope]) -> Desk:
    return Desk("north", begun.append)


def test_an_order_that_comes_twice_is_worked_on_once(desk: Desk, begun: list[Envelope]) -> None:
    for _ in range(2):
        assert desk.take(order()) == (Received(order().message_id), None)
    assert len(begun) == 1
    assert desk.pending == (order().message_id,)
    reply = reply_to(order(), {"reply": b"{}"})
    assert desk.finished(order().message_id, reply) is reply
    assert desk.take(order()) == (Received(order().message_id), None)
    assert len(begun) == 1


def test_an_answer_is_undelivered_until_its_receipt(desk: Desk) -> None:
    desk.take(order())
    assert desk.working
    reply = reply_to(order(), {"reply": b"{}"})
    desk.finished(order().message_id, reply)
    assert not desk.working
    assert (desk.pending, desk.undelivered) == ((order().message_id,), (reply,))
    desk.received(Received("f" * 32))
    assert desk.undelivered == (reply,)
    desk.received(Received(reply.message_id))
    assert (desk.pending, desk.undelivered) == ((), ())


def test_an_answer_that_is_not_taken_is_not_sent_for_ever(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.take(order())
    reply = reply_to(order(), {"reply": b"{}"})
    desk.finished(order().message_id, reply)
    desk.received(Received(reply.message_id, "late-reply"))
    assert desk.pending == ()
    assert "the coordinator took no answer: late-reply" in caplog.text


def test_more_orders_than_one_coordinator_gives_are_not_taken(
    desk: Desk, begun: list[Envelope]
) -> None:
    for number in range(MAX_WAITING):
        assert desk.take(order(number))[0].code == ""
    assert desk.take(order(99))[0] == Received(order(99).message_id, "site-busy")
    assert len(begun) == MAX_WAITING


def test_what_does_not_fit_is_answered_by_name(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    rejected = Rejected("a" * 32, "", "message", "expected the next 16 bytes of head, got 3")
    assert desk.reject(rejected) == Received("a" * 32, "message")
    assert "an order does not fit (message): expected the next 16 bytes" in caplog.text


def refusal_in(envelope: Envelope | None) -> Refusal:
    assert envelope is not None
    return decode(Refusal, envelope.documents["refusal"])


def test_told_to_stop_it_refuses_new_orders_by_name(desk: Desk, begun: list[Envelope]) -> None:
    desk.stop()
    receipt, answer = desk.take(order())
    assert receipt == Received(order().message_id)
    refusal = refusal_in(answer)
    assert (refusal.code, refusal.run_id, refusal.server_round) == ("site-stopping", TASK.run_id, 4)
    assert "hint" not in refusal.message
    assert begun == []
    assert not desk.working
    assert desk.undelivered == (answer,)


def test_dropped_work_is_refused_by_name_and_its_late_end_is_ignored(desk: Desk) -> None:
    desk.take(order(1))
    desk.take(order(2, documents={}))
    readable, unreadable = desk.drop()
    assert refusal_in(readable).server_round == 4
    assert (refusal_in(unreadable).code, refusal_in(unreadable).server_round) == (
        "site-stopping",
        0,
    )
    assert desk.finished(order(1).message_id, reply_to(order(1), {})) is None
    assert desk.undelivered == (readable, unreadable)
    assert desk.drop() == ()


def test_the_end_of_an_order_that_nobody_knows_is_ignored(desk: Desk) -> None:
    assert desk.finished("b" * 32, reply_to(order(), {})) is None
    assert desk.pending == ()
