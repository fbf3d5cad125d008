"""What a site sends, and a whole session over real gRPC."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.calls import session_channel
from client.service import Arrived
from client.session_io import Outgoing, Stream, probe
from coordinator.flower import NODE_UNAVAILABLE
from coordinator.orders import task_content
from coordinator.payload import to_record
from core.errors import IdentityError, SessionError
from core.wire.frames import (
    Begin,
    Challenge,
    Chunk,
    End,
    Frame,
    Goodbye,
    Heartbeat,
    Hello,
    Proof,
    Received,
    Welcome,
    decode_frame,
)
from core.wire.session import Session
from tests.support.joining import Consortium, Joined, joined_site
from tests.support.site_service import (
    MANIFEST,
    ORDER,
    EchoApp,
    Running,
    order_envelope,
    until,
)
from tests.support.sites import INITIAL

HELLO = Hello(1, "clinic", "north", "ab" * 16, b"n" * 32)


def open_session() -> Session:
    """As it is after the handshake."""
    session = Session("site")
    session.send(HELLO)
    session.receive(Challenge(b"c" * 32))
    session.send(Proof(b"p" * 64))
    session.receive(Welcome(b"{}", 0))
    return session


def take(outgoing: Outgoing, count: int) -> list[Frame]:
    return [decode_frame(next(outgoing)) for _ in range(count)]


def test_small_frames_overtake_the_chunks_of_a_message() -> None:
    outgoing = Outgoing(open_session())
    outgoing.post_message(order_envelope())
    (first,) = take(outgoing, 1)
    outgoing.post(Received("1" * 32))
    rest = take(outgoing, 5)
    assert isinstance(first, Begin)
    assert [type(frame) for frame in rest] == [Received, Chunk, Chunk, Chunk, End]


def test_messages_go_one_after_the_other() -> None:
    outgoing = Outgoing(open_session())
    for number in (1, 2):
        outgoing.post_message(order_envelope(number, arrays=None, arrays_name=""))
    found = [type(frame) for frame in take(outgoing, 4)]
    assert found == [Begin, End, Begin, End]


def test_no_message_goes_before_the_session_is_open() -> None:
    session = Session("site")
    outgoing = Outgoing(session, heartbeat_seconds=0.01)
    outgoing.post_message(order_envelope(arrays=None, arrays_name=""))
    outgoing.post(HELLO)
    assert take(outgoing, 1) == [HELLO]
    found: list[Frame] = []
    thread = threading.Thread(target=lambda: found.extend(take(outgoing, 2)))
    thread.start()
    time.sleep(0.05)
    assert found == []
    session.receive(Challenge(b"c" * 32))
    outgoing.post(Proof(b"p" * 64))
    until("the proof", lambda: True)
    session_opened = threading.Event()

    def welcome() -> None:
        until("the proof to be sent", lambda: session.phase.name == "PROVEN")
        session.receive(Welcome(b"{}", 0))
        outgoing.post(Heartbeat())
        session_opened.set()

    welcome()
    thread.join(10)
    assert [type(frame) for frame in found] == [Proof, Heartbeat]


def test_an_open_session_is_never_silent_for_long() -> None:
    outgoing = Outgoing(open_session(), heartbeat_seconds=0.02)
    assert take(outgoing, 3) == [Heartbeat()] * 3


def test_a_heartbeat_does_not_queue_behind_others() -> None:
    outgoing = Outgoing(open_session(), heartbeat_seconds=60)
    for _ in range(5):
        outgoing.post(Heartbeat())
    outgoing.close()
    assert [decode_frame(data) for data in outgoing] == [Heartbeat()]


def test_after_the_farewell_nothing_follows() -> None:
    outgoing = Outgoing(open_session())
    outgoing.post_message(order_envelope())
    outgoing.post(Goodbye("site-stopping"))
    outgoing.close()
    outgoing.post(Received("1" * 32))
    assert [decode_frame(data) for data in outgoing] == [Goodbye("site-stopping")]


def test_a_frame_that_may_not_be_sent_raises() -> None:
    outgoing = Outgoing(open_session())
    outgoing.post(HELLO)
    with pytest.raises(SessionError, match="expected no Hello from the site"):
        next(outgoing)


# Over real gRPC.


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Joined]:
    joined = joined_site(Consortium(), tmp_path)
    yield joined
    joined.servers.stop()


def dial(joined: Joined) -> Any:
    def dial(arrived: Arrived) -> Stream:
        identity = joined.identity
        channel = session_channel(joined.membership, identity.tls_key(), identity.certificate_pem())
        return Stream(channel, arrived, heartbeat_seconds=0.2)

    return dial


def send_order(joined: Joined, timeout: float = 20) -> Any:
    grid = joined.grid
    grid.begin_run({1: "north"}, MANIFEST)
    message = grid.create_message(task_content(ORDER, to_record(INITIAL)), "train", 1, "4", timeout)
    (reply,) = grid.send_and_receive([message], timeout=timeout)
    return reply


def test_an_order_goes_there_and_back_over_mutual_tls(joined: Joined) -> None:
    app = EchoApp()
    with Running(joined, dial(joined), app):
        until("the session", lambda: "north" in joined.grid.sites())
        reply = send_order(joined)
        assert set(reply.content) == {"reply", "arrays"}
        assert dict(reply.content["arrays"]).keys() == INITIAL.keys()
    assert len(app.tasks) == 1
    until("its goodbye", lambda: joined.grid.sites() == {})


def test_a_session_that_is_cut_during_work_is_opened_again(joined: Joined) -> None:
    app = EchoApp()
    app.go.clear()
    with Running(joined, dial(joined), app) as running:
        until("the session", lambda: "north" in joined.grid.sites())
        replies: list[Any] = []
        asking = threading.Thread(target=lambda: replies.append(send_order(joined)))
        asking.start()
        until("work", app.begun.is_set)
        stream = running.service._stream
        assert isinstance(stream, Stream)
        stream._call.cancel()
        until("another session", lambda: running.service._stream not in (None, stream))
        app.go.set()
        asking.join(20)
    assert len(app.tasks) == 1
    assert replies
    assert replies[0].has_content()


def test_a_revoked_site_is_told_and_its_order_fails(
    joined: Joined, caplog: pytest.LogCaptureFixture
) -> None:
    app = EchoApp()
    app.go.clear()
    with Running(joined, dial(joined), app):
        until("the session", lambda: "north" in joined.grid.sites())
        replies: list[Any] = []
        asking = threading.Thread(target=lambda: replies.append(send_order(joined)))
        asking.start()
        until("work", app.begun.is_set)
        joined.consortium.change("north", status="revoked")
        asking.join(20)
        until("the log", lambda: "the coordinator refuses this site: identity" in caplog.text)
        app.go.set()
    assert replies[0].error.code == NODE_UNAVAILABLE
    assert "north" not in joined.grid.sites()


def test_a_probe_is_challenged_and_disturbs_no_session(joined: Joined) -> None:
    with Running(joined, dial(joined), EchoApp()) as running:
        until("the session", lambda: "north" in joined.grid.sites())
        stream = running.service._stream
        identity = joined.identity
        with session_channel(
            joined.membership, identity.tls_key(), identity.certificate_pem()
        ) as channel:
            probe(channel, HELLO)
        assert send_order(joined).has_content()
        assert running.service._stream is stream


def test_a_probe_of_a_revoked_site_is_refused(joined: Joined) -> None:
    joined.consortium.change("north", status="revoked")
    identity = joined.identity
    with (
        session_channel(
            joined.membership, identity.tls_key(), identity.certificate_pem()
        ) as channel,
        pytest.raises(IdentityError, match="the coordinator refuses this site: identity"),
    ):
        probe(channel, HELLO)


def test_a_probe_of_nobody_is_named(joined: Joined) -> None:
    identity = joined.identity
    gone = joined.membership.model_copy(update={"address": "127.0.0.1:1"})
    with (
        session_channel(gone, identity.tls_key(), identity.certificate_pem()) as channel,
        pytest.raises(SessionError, match="expected the coordinator to answer, got UNAVAILABLE"),
    ):
        probe(channel, HELLO)
