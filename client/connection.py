"""A site's end of one session, from Hello to Goodbye: frames in, what they mean out. No IO."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from secrets import token_bytes
from typing import Final, TypeAlias

from core.aggregation_messages import EXCHANGES
from core.array_codec import Manifest
from core.audit_messages import AUDIT
from core.errors import MessageError
from core.messages import decode
from core.wire.documents import PROTOCOL_VERSION, Invitation, SignedRoster, session_transcript
from core.wire.frames import (
    NONCE_BYTES,
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
from core.wire.session import Session
from core.wire.transfer import Envelope, Receiver, Rejected
from privacy.signing import SiteKey

# Both bear weights of the model.
_WITH_ARRAYS: Final = ("train", AUDIT)


@dataclass(frozen=True)
class Opened:
    """The coordinator let this site in. What it shows is not checked yet."""

    roster: SignedRoster
    time: datetime


Event: TypeAlias = Opened | Envelope | Rejected | Received | Settled | Goodbye


class Connection:
    """Speaks for the site. One thread calls ``begin`` and ``feed``.

    Guarantees:
        The node key signs nothing but this federation's, this site's and this session's own
        transcript. Of a message, only arrays that fit the site's own manifest are kept.

    Args:
        session: Says which frame may come when; whoever sends tells it of the others.
        membership: Whom the site belongs to.
        node_key: Its key.
        instance: New at every start of the program.
        manifest: What the arrays of an order must be.
        post: Sends a frame.
    """

    def __init__(
        self,
        session: Session,
        membership: Invitation,
        node_key: SiteKey,
        *,
        instance: str,
        manifest: Manifest,
        post: Callable[[Frame], None],
    ) -> None:
        self._session = session
        self._membership = membership
        self._node_key = node_key
        self._instance = instance
        self._manifest = manifest
        self._post = post
        self._nonce = token_bytes(NONCE_BYTES)
        self._receiver = Receiver(self._manifest_for)

    def begin(self, roster_epoch: int, pending: tuple[str, ...]) -> None:
        """Says hello."""
        self._post(
            Hello(
                protocol=PROTOCOL_VERSION,
                federation=self._membership.federation,
                site=self._membership.site,
                instance=self._instance,
                nonce=self._nonce,
                roster_epoch=roster_epoch,
                pending=pending,
            )
        )

    def feed(self, frame: Frame) -> Event | None:
        """Takes a frame of the coordinator.

        Raises:
            SessionError: It may not come now.
            MessageError: The roster in the Welcome does not parse.
        """
        self._session.receive(frame)
        match frame:
            case Challenge():
                self._post(Proof(self._sign(frame.nonce)))
            case Welcome():
                time = datetime.fromtimestamp(frame.time_unix_milliseconds / 1000, UTC)
                return Opened(decode(SignedRoster, frame.roster), time)
            case Begin() | Chunk() | End():
                return self._receiver.feed(frame)
            case Heartbeat():
                self._post(Heartbeat())  # in the coordinator's rhythm, which it alone knows
            case Received() | Settled() | Goodbye():
                return frame
        return None

    def _sign(self, nonce: bytes) -> bytes:
        transcript = session_transcript(
            self._membership.federation,
            self._membership.site,
            self._instance,
            self._nonce,
            nonce,
        )
        return bytes.fromhex(self._node_key.sign("session", transcript))

    def _manifest_for(self, begin: Begin) -> Manifest | None:
        if not begin.reply_to and begin.message_type in _WITH_ARRAYS:
            return self._manifest
        if not begin.reply_to and begin.message_type in EXCHANGES:
            return None
        raise MessageError(
            f"expected an order to train or to count, or one of an attempt at a secure sum, "
            f"got {begin.message_type}"
        )
