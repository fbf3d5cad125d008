"""Who may send which frame when, as a table, for both ends of a stream. No IO.

    site          Hello               Proof
    coordinator           Challenge           Welcome    then both: messages, until a Goodbye

Deliberately not checked here: who the site is (the coordinator's service checks its certificate,
the roster and the proof) and what messages hold (``core.wire.transfer``).
"""

from enum import Enum
from typing import Final, Literal

from core.errors import SessionError
from core.wire.documents import PROTOCOL_VERSION
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

Role = Literal["site", "coordinator"]


class Phase(Enum):
    """How far the two ends are with each other."""

    NEW = "before the hello"
    GREETED = "after the hello"
    CHALLENGED = "after the challenge"
    PROVEN = "after the proof"
    OPEN = "in an open session"


class Side(Enum):
    """What one end of an open session is at."""

    BETWEEN = "between messages"
    WITHIN = "within a message"
    GONE = "after its goodbye"


# (phase, who sends, what) -> phase
_HANDSHAKE: Final[dict[tuple[Phase, Role, type], Phase]] = {
    (Phase.NEW, "site", Hello): Phase.GREETED,
    (Phase.GREETED, "coordinator", Challenge): Phase.CHALLENGED,
    (Phase.CHALLENGED, "site", Proof): Phase.PROVEN,
    (Phase.PROVEN, "coordinator", Welcome): Phase.OPEN,
}

# (what the sender is at, what it sends) -> what the sender is at
_OPEN: Final[dict[tuple[Side, type], Side]] = {
    (Side.BETWEEN, Begin): Side.WITHIN,
    (Side.WITHIN, Chunk): Side.WITHIN,
    (Side.WITHIN, End): Side.BETWEEN,
    **{
        (side, kind): side
        for side in (Side.BETWEEN, Side.WITHIN)
        for kind in (Heartbeat, Received, Settled)
    },
}
_COORDINATOR_ONLY: Final = (Settled,)


class Session:
    """One end of a stream: told of every frame before it is sent and after it was read.

    Guarantees:
        A frame that the table does not have where it comes raises, and changes nothing.

    One thread may tell of sent frames while another tells of received ones, once it is open.

    Args:
        role: Which end this is.
    """

    def __init__(self, role: Role) -> None:
        self._role: Final[Role] = role
        self._peer: Final[Role] = "coordinator" if role == "site" else "site"
        self._phase = Phase.NEW
        self._sides: dict[Role, Side] = {"site": Side.BETWEEN, "coordinator": Side.BETWEEN}

    @property
    def phase(self) -> Phase:
        """How far the two ends are."""
        return self._phase

    @property
    def is_open(self) -> bool:
        """Whether messages can go both ways."""
        return self._phase is Phase.OPEN and Side.GONE not in self._sides.values()

    @property
    def peer_is_gone(self) -> bool:
        """Whether the other end said goodbye."""
        return self._sides[self._peer] is Side.GONE

    def send(self, frame: Frame) -> None:
        """This end is about to send ``frame``.

        Raises:
            SessionError: It may not; nothing changed.
        """
        self._move(self._role, frame)

    def receive(self, frame: Frame) -> None:
        """The other end sent ``frame``.

        Raises:
            SessionError: It may not, or it speaks another version; nothing changed.
        """
        self._move(self._peer, frame)

    def _move(self, sender: Role, frame: Frame) -> None:
        side, kind = self._sides[sender], type(frame)
        if side is Side.GONE:
            raise _illegal(sender, kind, side.value)
        if kind is Goodbye:
            self._sides[sender] = Side.GONE
        elif self._phase is not Phase.OPEN:
            phase = _HANDSHAKE.get((self._phase, sender, kind))
            if phase is None:
                raise _illegal(sender, kind, self._phase.value)
            if isinstance(frame, Hello):
                _check_version(frame.protocol)
            self._phase = phase
        else:
            after = _OPEN.get((side, kind))
            if after is None or (kind in _COORDINATOR_ONLY and sender == "site"):
                raise _illegal(sender, kind, side.value)
            self._sides[sender] = after


def _illegal(sender: Role, kind: type, where: str) -> SessionError:
    return SessionError(f"expected no {kind.__name__} from the {sender} {where}, got one")


def _check_version(protocol: int) -> None:
    if protocol != PROTOCOL_VERSION:
        raise SessionError(
            f"expected protocol {PROTOCOL_VERSION}, got {protocol}",
            hint="install versions of Cloister that speak the same protocol on both sides",
        )
