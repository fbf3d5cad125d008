"""A site's end of a session, told of plain frames."""

from collections.abc import Callable
from typing import Any

import pytest

from client.connection import Connection, Opened
from core.errors import MessageError, SessionError
from core.messages import encode
from core.wire.documents import session_transcript
from core.wire.frames import (
    Begin,
    Challenge,
    End,
    Frame,
    Goodbye,
    Heartbeat,
    Hello,
    Proof,
    Received,
    Settled,
    Welcome,
)
from core.wire.session import Session
from core.wire.transfer import Envelope, Rejected, frames_of
from privacy.signing import SiteKey, verify_signature
from tests.support.documents import INVITATION, SIGNED
from tests.support.site_service import MANIFEST, order_envelope

INSTANCE = "ab" * 16
WELCOME = Welcome(encode(SIGNED), 1_780_000_000_000)


class Here:
    """A connection and what it posted."""

    def __init__(self) -> None:
        self.session, self.key = Session("site"), SiteKey.generate()
        self.sent: list[Frame] = []
        self.connection = Connection(
            self.session,
            INVITATION,
            self.key,
            instance=INSTANCE,
            manifest=MANIFEST,
            post=self._post,
        )

    def _post(self, frame: Frame) -> None:
        self.session.send(frame)
        self.sent.append(frame)

    def feed(self, *frames: Frame) -> list[Any]:
        return [event for f in frames if (event := self.connection.feed(f)) is not None]

    def open(self) -> "Here":
        self.connection.begin(3, ())
        self.feed(Challenge(b"c" * 32), WELCOME)
        return self


def test_the_handshake_proves_the_node_key_for_this_session_alone() -> None:
    here = Here()
    here.connection.begin(3, ("1" * 32,))
    (opened,) = here.feed(Challenge(b"c" * 32), WELCOME)
    hello, proof = here.sent
    assert isinstance(hello, Hello)
    assert isinstance(proof, Proof)
    assert (hello.federation, hello.site) == (INVITATION.federation, INVITATION.site)
    assert (hello.instance, hello.roster_epoch, hello.pending) == (INSTANCE, 3, ("1" * 32,))
    transcript = session_transcript(
        hello.federation, hello.site, hello.instance, hello.nonce, b"c" * 32
    )
    verify_signature(here.key.public_hex, "session", transcript, proof.signature.hex())
    assert opened == Opened(SIGNED, opened.time)
    assert opened.time.isoformat() == "2026-05-28T20:26:40+00:00"


def test_every_session_has_a_nonce_of_its_own() -> None:
    nonces = set()
    for _ in range(3):
        here = Here().open()
        assert isinstance(here.sent[0], Hello)
        nonces.add(here.sent[0].nonce)
    assert len(nonces) == 3


@pytest.mark.parametrize(
    "early",
    [
        WELCOME,
        Heartbeat(),
        Settled("0" * 16, 1),
        Received("0" * 32),
        End(),
        Proof(b"p" * 64),
    ],
)
def test_nothing_counts_before_the_welcome(early: Frame) -> None:
    here = Here()
    here.connection.begin(0, ())
    with pytest.raises(SessionError, match=f"expected no {type(early).__name__}"):
        here.feed(early)
    with pytest.raises(SessionError, match="expected no Challenge"):
        here.feed(Challenge(b"c" * 32), Challenge(b"d" * 32))


def test_a_roster_that_does_not_parse_is_refused() -> None:
    here = Here()
    here.connection.begin(0, ())
    with pytest.raises(MessageError, match="SignedRoster"):
        here.feed(Challenge(b"c" * 32), Welcome(b"{}", 0))


def test_an_order_comes_out_whole() -> None:
    order = order_envelope()
    (found,) = Here().open().feed(*frames_of(order))
    assert isinstance(found, Envelope)
    assert found.arrays == order.arrays


@pytest.mark.parametrize(
    "change",
    [
        lambda: order_envelope(arrays_name="", arrays=None, reply_to="1" * 32),
        lambda: order_envelope(message_type="query"),
        lambda: order_envelope(reply_to="1" * 32),
    ],
)
def test_what_is_no_order_is_rejected(change: Callable[[], Envelope]) -> None:
    (found,) = Here().open().feed(*frames_of(change()))
    assert isinstance(found, Rejected)
    assert (found.code, found.message_id) == ("message", order_envelope().message_id)


def test_what_stands_between_orders_is_given_as_it_is() -> None:
    frames = [Received("1" * 32), Settled("0" * 16, 2), Goodbye("replaced")]
    assert Here().open().feed(*frames) == frames


def test_a_heartbeat_is_answered() -> None:
    here = Here().open()
    here.feed(Heartbeat())
    assert here.sent[-1] == Heartbeat()


def test_frames_in_no_order_end_the_session() -> None:
    here = Here().open()
    begin = next(frames_of(order_envelope()))
    assert isinstance(begin, Begin)
    here.feed(begin)
    with pytest.raises(SessionError, match="expected no Begin"):
        here.feed(begin)
