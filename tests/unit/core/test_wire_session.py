"""The transition table of a session: every frame in every state, from both ends."""

import itertools
import re

import pytest

from core.errors import SessionError
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
    Settled,
    Welcome,
)
from core.wire.session import Phase, Role, Session

ID = "0123456789abcdef" * 2
HELLO = Hello(1, "clinic", "north", ID, bytes(32))
CHALLENGE, PROOF, WELCOME = Challenge(bytes(32)), Proof(bytes(64)), Welcome(b"{}", 0)
BEGIN, CHUNK, END = Begin(ID, "", "train", "", 1, 1.0, 1.0), Chunk(b"x"), End()
HEARTBEAT, RECEIVED, GOODBYE = Heartbeat(), Received(ID), Goodbye("session")
SETTLED = Settled(ID[:16], 1)

ALL: list[Frame] = [
    HELLO, CHALLENGE, PROOF, WELCOME, HEARTBEAT, BEGIN, CHUNK, END, RECEIVED, SETTLED, GOODBYE,
]  # fmt: skip
ROLES: tuple[Role, Role] = ("site", "coordinator")
Step = tuple[Role, Frame]
HANDSHAKE: list[Step] = [
    ("site", HELLO),
    ("coordinator", CHALLENGE),
    ("site", PROOF),
    ("coordinator", WELCOME),
]
ANY_TIME = [HEARTBEAT, RECEIVED, GOODBYE]

# (what went before, who sends) -> what may come
STATES: dict[str, tuple[list[Step], dict[Role, list[Frame]]]] = {
    "new": ([], {"site": [HELLO, GOODBYE], "coordinator": [GOODBYE]}),
    "greeted": (HANDSHAKE[:1], {"site": [GOODBYE], "coordinator": [CHALLENGE, GOODBYE]}),
    "challenged": (HANDSHAKE[:2], {"site": [PROOF, GOODBYE], "coordinator": [GOODBYE]}),
    "proven": (HANDSHAKE[:3], {"site": [GOODBYE], "coordinator": [WELCOME, GOODBYE]}),
    "open": (
        HANDSHAKE,
        {"site": [*ANY_TIME, BEGIN], "coordinator": [*ANY_TIME, BEGIN, SETTLED]},
    ),
    "the site is within a message": (
        [*HANDSHAKE, ("site", BEGIN)],
        {"site": [*ANY_TIME, CHUNK, END], "coordinator": [*ANY_TIME, BEGIN, SETTLED]},
    ),
    "both are within a message": (
        [*HANDSHAKE, ("site", BEGIN), ("coordinator", BEGIN), ("site", CHUNK)],
        {"site": [*ANY_TIME, CHUNK, END], "coordinator": [*ANY_TIME, CHUNK, END, SETTLED]},
    ),
    "after a message": (
        [*HANDSHAKE, ("coordinator", BEGIN), ("coordinator", CHUNK), ("coordinator", END)],
        {"site": [*ANY_TIME, BEGIN], "coordinator": [*ANY_TIME, BEGIN, SETTLED]},
    ),
    "the site said goodbye": (
        [*HANDSHAKE, ("site", GOODBYE)],
        {"site": [], "coordinator": [*ANY_TIME, BEGIN, SETTLED]},
    ),
    "the coordinator said goodbye within a message": (
        [*HANDSHAKE, ("coordinator", BEGIN), ("coordinator", GOODBYE)],
        {"site": [*ANY_TIME, BEGIN], "coordinator": []},
    ),
    "both said goodbye": (
        [*HANDSHAKE, ("site", GOODBYE), ("coordinator", GOODBYE)],
        {"site": [], "coordinator": []},
    ),
    "the coordinator refused the hello": (
        [*HANDSHAKE[:1], ("coordinator", GOODBYE)],
        {"site": [GOODBYE], "coordinator": []},
    ),
}


def move(session: Session, role: Role, step: Step) -> None:
    sender, frame = step
    if sender == role:
        session.send(frame)
    else:
        session.receive(frame)


def arrive(role: Role, state: str) -> Session:
    session = Session(role)
    for step in STATES[state][0]:
        move(session, role, step)
    return session


def seen(session: Session) -> tuple[object, ...]:
    return session.phase, session.is_open, session.peer_is_gone, *session._sides.items()


@pytest.mark.parametrize(("role", "state"), list(itertools.product(ROLES, STATES)))
def test_in_every_state_only_the_frames_of_the_table_may_come(role: Role, state: str) -> None:
    for sender in ROLES:
        allowed = STATES[state][1][sender]
        for frame in ALL:
            session = arrive(role, state)
            before = seen(session)
            if frame in allowed:
                move(session, role, (sender, frame))
            else:
                kind = type(frame).__name__
                with pytest.raises(SessionError, match=f"expected no {kind} from the {sender} "):
                    move(session, role, (sender, frame))
                assert seen(session) == before


@pytest.mark.parametrize("role", ROLES)
def test_the_handshake_opens_the_session(role: Role) -> None:
    session = Session(role)
    phases = [session.phase]
    for step in HANDSHAKE:
        assert not session.is_open
        move(session, role, step)
        phases.append(session.phase)
    assert phases == list(Phase)
    assert session.is_open


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("leaving", ROLES)
def test_a_goodbye_closes_the_session(role: Role, leaving: Role) -> None:
    session = arrive(role, "open")
    move(session, role, (leaving, GOODBYE))
    assert not session.is_open
    assert session.peer_is_gone == (leaving != role)


def test_the_refusal_says_who_what_and_where() -> None:
    words = "expected no Chunk from the site between messages, got one"
    with pytest.raises(SessionError, match=re.escape(words)):
        arrive("coordinator", "open").receive(CHUNK)


@pytest.mark.parametrize("protocol", [2, 2**32 - 1])
def test_another_version_is_refused_by_name(protocol: int) -> None:
    session = Session("coordinator")
    with pytest.raises(SessionError, match=f"expected protocol 1, got {protocol}\nhint: install"):
        session.receive(Hello(protocol, "clinic", "north", ID, bytes(32)))
    assert session.phase is Phase.NEW
