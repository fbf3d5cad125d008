"""The site's service over one session after another: nothing twice, nothing lost."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from client import service as module
from core.errors import IdentityError, SessionError, VaultError
from core.messages import Refusal, decode
from core.wire.frames import Goodbye, Heartbeat, Received, Settled
from core.wire.transfer import Envelope
from tests.support.joining import Consortium, Joined, joined_site
from tests.support.site_service import (
    DIGEST,
    ORDER,
    EchoApp,
    PlainCoordinator,
    PlainStream,
    Running,
    order_envelope,
    the_reply,
    until,
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(module, "_TICK_SECONDS", 0.02)


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Joined]:
    joined = joined_site(Consortium(), tmp_path)
    yield joined
    joined.servers.stop()


@pytest.fixture
def coordinator(joined: Joined) -> PlainCoordinator:
    return PlainCoordinator(joined)


@pytest.fixture
def app() -> EchoApp:
    return EchoApp()


@pytest.fixture
def running(joined: Joined, coordinator: PlainCoordinator, app: EchoApp) -> Iterator[Running]:
    with Running(joined, coordinator.dial, app) as running:
        yield running


def is_open(stream: PlainStream) -> bool:
    return stream.session.is_open and bool(stream.told(Heartbeat))


def opened(coordinator: PlainCoordinator, number: int = 1) -> PlainStream:
    """The stream of that number, as soon as it is open."""
    until(
        f"session {number}",
        lambda: len(coordinator.streams) >= number and is_open(coordinator.streams[number - 1]),
    )
    return coordinator.streams[number - 1]


def refusal_in(envelope: Envelope) -> Refusal:
    return decode(Refusal, envelope.documents["refusal"])


def test_an_order_is_received_worked_on_and_answered(
    running: Running, coordinator: PlainCoordinator, app: EchoApp
) -> None:
    stream = opened(coordinator)
    stream.order(order_envelope())
    until("the reply", lambda: stream.replies)
    (reply,) = stream.replies
    assert stream.told(Received) == [Received(order_envelope().message_id)]
    assert reply.reply_to == order_envelope().message_id
    assert reply.arrays_digest == DIGEST
    assert the_reply(reply).server_round == ORDER.server_round
    assert app.tasks == [ORDER]


def test_the_hello_names_the_pinned_roster_and_nothing_pending(
    running: Running, coordinator: PlainCoordinator, joined: Joined
) -> None:
    hello = opened(coordinator).hello
    assert joined.consortium.signed is not None
    assert (hello.site, hello.pending) == ("north", ())
    assert hello.roster_epoch == joined.consortium.signed.roster.epoch


def test_a_session_that_breaks_during_work_changes_nothing(
    running: Running, coordinator: PlainCoordinator, app: EchoApp
) -> None:
    app.go.clear()
    first, order = opened(coordinator), order_envelope()
    first.order(order)
    until("work", app.begun.is_set)
    first.lose()
    second = opened(coordinator, 2)
    assert second.hello.pending == (order.message_id,)
    assert second.hello.instance == first.hello.instance
    assert second.hello.nonce != first.hello.nonce
    second.order(order)  # its receipt was lost with the session
    app.go.set()
    until("the reply", lambda: second.replies)
    assert len(app.tasks) == 1
    assert [r.reply_to for r in first.replies + second.replies] == [order.message_id]


def test_work_that_ends_between_two_sessions_is_delivered_by_the_next(
    running: Running, coordinator: PlainCoordinator, app: EchoApp
) -> None:
    app.go.clear()
    first = opened(coordinator)
    first.order(order_envelope())
    until("work", app.begun.is_set)
    coordinator.refuses = [SessionError("nobody there")] * 3
    first.lose()
    until("the dials", lambda: not coordinator.refuses)
    app.go.set()
    second = opened(coordinator, 2)
    until("the reply", lambda: second.replies)
    assert len(app.tasks) == 1


def test_a_reply_without_a_receipt_is_sent_again_and_not_computed_again(
    running: Running, coordinator: PlainCoordinator, app: EchoApp
) -> None:
    coordinator.receives = False
    first = opened(coordinator)
    first.order(order_envelope())
    until("the reply", lambda: first.replies)
    first.lose()
    coordinator.receives = True
    second = opened(coordinator, 2)
    assert second.hello.pending == (order_envelope().message_id,)
    until("the reply again", lambda: second.replies)
    assert second.replies[0].message_id == first.replies[0].message_id
    second.lose()
    assert opened(coordinator, 3).hello.pending == ()
    assert len(app.tasks) == 1


def test_a_newer_roster_is_pinned_and_an_older_one_ends_the_session(
    running: Running, coordinator: PlainCoordinator, joined: Joined, app: EchoApp
) -> None:
    old = joined.consortium.signed
    first = opened(coordinator)
    joined.consortium.sign()
    first.lose()
    second = opened(coordinator, 2)
    assert joined.identity.roster() == joined.consortium.signed
    coordinator.lies["roster"] = old
    second.lose()
    until("the farewell", lambda: len(coordinator.streams) > 3)
    third = coordinator.streams[2]
    assert third.told(Goodbye) == [Goodbye("roster-rollback")]
    assert third.closed
    assert joined.identity.roster() == joined.consortium.signed


def test_a_coordinator_with_another_clock_gets_no_work_done(
    coordinator: PlainCoordinator, joined: Joined, app: EchoApp, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator.lies["clock_error"] = timedelta(days=1)
    with Running(joined, coordinator.dial, app):
        until("the farewell", lambda: len(coordinator.streams) > 1)
        assert coordinator.streams[0].told(Goodbye) == [Goodbye("identity")]
    assert "expected clocks at most 5 minutes apart" in caplog.text


def test_orders_before_the_welcome_are_no_orders(
    joined: Joined, coordinator: PlainCoordinator, app: EchoApp
) -> None:
    class Hasty(PlainCoordinator):
        def dial(self, arrived: Any) -> PlainStream:
            stream = super().dial(arrived)
            stream.order(order_envelope())
            return stream

    hasty = Hasty(joined)
    with Running(joined, hasty.dial, app):
        until("the farewell", lambda: len(hasty.streams) > 1)
        assert hasty.streams[0].told(Goodbye) == [Goodbye("session")]
    assert app.tasks == []


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"\x3a\x05\x0a\x03abc"])
def test_what_is_no_frame_ends_the_session_by_name(
    running: Running, coordinator: PlainCoordinator, data: bytes
) -> None:
    first = opened(coordinator)
    first._arrived(first, data)
    until("the next session", lambda: opened(coordinator, 2))
    assert [goodbye.code for goodbye in first.told(Goodbye)] in (["message"], ["session"])


def test_an_order_with_other_weights_is_refused_and_the_session_goes_on(
    running: Running, coordinator: PlainCoordinator, app: EchoApp
) -> None:
    stream = opened(coordinator)
    whole = order_envelope()
    assert whole.arrays is not None
    fewer = {name: array for name, array in whole.arrays.items() if name != "scale"}
    stream.order(order_envelope(1, arrays=fewer))
    stream.order(order_envelope(2, message_type="evaluate"))
    stream.order(order_envelope(3))
    until("the reply", lambda: stream.replies)
    codes = [receipt.code for receipt in stream.told(Received)]
    assert codes == ["message", "message", ""]
    assert len(app.tasks) == 1


def test_heartbeats_come_in_the_coordinator_s_rhythm(
    running: Running, coordinator: PlainCoordinator
) -> None:
    stream = opened(coordinator)
    before = len(stream.told(Heartbeat))
    stream.say(Heartbeat(), Heartbeat())
    until("heartbeats", lambda: len(stream.told(Heartbeat)) == before + 2)


def test_a_silent_coordinator_is_left(
    running: Running, coordinator: PlainCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(coordinator)
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.1)
    opened(coordinator, 2)
    assert coordinator.streams[0].closed


def test_a_goodbye_is_followed_by_another_try(
    running: Running, coordinator: PlainCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    opened(coordinator).say(Goodbye("coordinator-stopping", "maintenance"))
    opened(coordinator, 2)
    assert "said goodbye (coordinator-stopping): maintenance" in caplog.text


def test_a_settled_reply_is_forgotten(
    running: Running, coordinator: PlainCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[tuple[str, int]] = []
    monkeypatch.setattr(running.outbox, "settle", lambda *item: settled.append(item))
    opened(coordinator).say(Settled(ORDER.run_id, 4))
    until("it to be settled", lambda: settled == [(ORDER.run_id, 4)])


def test_a_disk_that_fails_at_settling_does_not_end_the_session(
    running: Running,
    coordinator: PlainCoordinator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any) -> None:
        raise VaultError("expected to read and write the outbox, got: Read-only file system")

    monkeypatch.setattr(running.outbox, "settle", fail)
    stream = opened(coordinator)
    stream.say(Settled(ORDER.run_id, 4))
    until("the log", lambda: "Read-only file system" in caplog.text)
    assert not stream.closed


def test_what_keeps_it_from_dialling_is_logged_and_tried_again(
    joined: Joined, coordinator: PlainCoordinator, app: EchoApp, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator.refuses = [IdentityError("expected a certificate that is valid, got none")] * 5
    with Running(joined, coordinator.dial, app):
        opened(coordinator)
    assert "no session (identity): expected a certificate that is valid" in caplog.text


def test_told_to_stop_while_idle_it_says_goodbye_and_ends(
    running: Running, coordinator: PlainCoordinator
) -> None:
    stream = opened(coordinator)
    assert running.stopped()
    assert stream.told(Goodbye) == [Goodbye("site-stopping")]
    assert stream.closed


def test_told_to_stop_it_lets_the_round_end_and_refuses_the_next_by_name(
    running: Running, coordinator: PlainCoordinator, app: EchoApp
) -> None:
    app.go.clear()
    stream = opened(coordinator)
    stream.order(order_envelope(1))
    until("work", app.begun.is_set)
    running.service.stop()
    stream.order(order_envelope(2))
    until("the refusal", lambda: stream.replies)
    assert refusal_in(stream.replies[0]).code == "site-stopping"
    assert not stream.closed
    app.go.set()
    assert running.stopped()
    assert the_reply(stream.replies[1]).server_round == ORDER.server_round
    assert len(app.tasks) == 1


def test_a_round_that_takes_too_long_is_dropped_by_name(
    joined: Joined, coordinator: PlainCoordinator, app: EchoApp
) -> None:
    app.go.clear()
    with Running(joined, coordinator.dial, app, stop_seconds=0.1) as running:
        stream = opened(coordinator)
        stream.order(order_envelope())
        until("work", app.begun.is_set)
        assert not running.stopped()
        (dropped,) = stream.replies
        assert (refusal_in(dropped).code, refusal_in(dropped).server_round) == ("site-stopping", 4)
        assert stream.told(Goodbye) == [Goodbye("site-stopping")]


def test_told_to_stop_without_a_coordinator_it_ends(
    joined: Joined, coordinator: PlainCoordinator, app: EchoApp
) -> None:
    coordinator.refuses = [SessionError("nobody there")] * 10_000
    with Running(joined, coordinator.dial, app) as running:
        until("a dial", lambda: len(coordinator.refuses) < 10_000)
        assert running.stopped()


def test_one_node_key_signs_each_session_anew(
    running: Running, coordinator: PlainCoordinator
) -> None:
    """The double checks every proof; a replayed nonce would show as an equal one."""
    opened(coordinator).lose()
    opened(coordinator, 2)
    nonces = {stream.hello.nonce for stream in coordinator.streams}
    assert len(nonces) == len(coordinator.streams)
