"""A site's service between a coordinator of plain frames and an app that a test holds back."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict

from client.flower import ARRAYS
from client.identity_folder import IdentityFolder
from client.outbox import Outbox
from client.service import Arrived, SiteService
from core.array_codec import encode_arrays, manifest_of
from core.digests import arrays_digest
from core.errors import CloisterError, SessionError
from core.messages import TrainReply, TrainTask, decode, encode
from core.wire.documents import SignedRoster, session_transcript
from core.wire.frames import (
    NONCE_BYTES,
    Challenge,
    Frame,
    Goodbye,
    Hello,
    Proof,
    Received,
    Welcome,
    encode_frame,
)
from core.wire.session import Session
from core.wire.transfer import Envelope, Receiver, frames_of
from privacy.signing import verify_signature
from tests.support.joining import Joined
from tests.support.messages import REPLY, TASK
from tests.support.sites import INITIAL

MANIFEST = manifest_of(INITIAL)
DIGEST = arrays_digest(INITIAL)
ORDER = TASK.model_copy(update={"arrays_digest": DIGEST})


def order_envelope(number: int = 1, **changes: Any) -> Envelope:
    """An order with the weights ``INITIAL``."""
    fields: dict[str, Any] = {
        "message_id": f"{number:032x}",
        "reply_to": "",
        "message_type": "train",
        "group_id": "4",
        "run_number": 7,
        "ttl_seconds": 60.0,
        "created_at": time.time(),
        "documents": {"task": encode(ORDER)},
        "arrays_name": ARRAYS,
        "arrays": encode_arrays(INITIAL),
    }
    return Envelope(**(fields | changes))


class EchoApp:
    """Sends an order's weights back, as soon as it may.

    Args:
        go: Set where it may.
    """

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.tasks: list[TrainTask] = []
        self.begun = threading.Event()

    def __call__(self, message: Message, context: Context) -> Message:
        """The reply."""
        task = decode(TrainTask, message.content["task"]["task"])  # type: ignore[index]
        self.tasks.append(task)
        self.begun.set()
        if not self.go.wait(20):
            raise TimeoutError("the test held the app back for too long")
        reply = REPLY.model_copy(
            update={
                "run_id": task.run_id,
                "server_round": task.server_round,
                "attempt": task.attempt,
                "arrays_digest": task.arrays_digest,
            }
        )
        content = RecordDict({"reply": ConfigRecord({"reply": encode(reply)})})
        content[ARRAYS] = message.content[ARRAYS]
        return Message(content, reply_to=message)


@dataclass
class PlainCoordinator:
    """The other end of every stream that the site opens; takes frames at once."""

    joined: Joined
    lies: dict[str, Any] = field(default_factory=dict)
    """``roster`` and ``clock_error`` of the Welcome."""
    receives: bool = True
    """Whether it says so when a reply came."""
    streams: list["PlainStream"] = field(default_factory=list)
    refuses: list[CloisterError] = field(default_factory=list)
    """What the next dials fail with."""

    def dial(self, arrived: Arrived) -> "PlainStream":
        """Opens a stream."""
        if self.refuses:
            raise self.refuses.pop(0)
        stream = PlainStream(self, arrived)
        self.streams.append(stream)
        return stream

    @property
    def stream(self) -> "PlainStream":
        """The newest."""
        return self.streams[-1]

    def welcome(self) -> Welcome:
        """With the present roster."""
        roster: SignedRoster | None = self.lies.get("roster", self.joined.consortium.signed)
        assert roster is not None
        now = self.joined.consortium.now() + self.lies.get("clock_error", timedelta())
        return Welcome(encode(roster), round(now.timestamp() * 1000))


class PlainStream:
    """A stream without a network."""

    channel = None

    def __init__(self, coordinator: PlainCoordinator, arrived: Arrived) -> None:
        self.session = Session("site")
        self.heard: list[Frame] = []
        self.replies: list[Envelope] = []
        self.closed = False
        self._coordinator = coordinator
        self._arrived = arrived
        self._receiver = Receiver(lambda _: MANIFEST)
        self._hello: Hello | None = None
        self._nonce = bytes(range(NONCE_BYTES))

    @property
    def hello(self) -> Hello:
        """How it began."""
        assert self._hello is not None
        return self._hello

    def post(self, frame: Frame) -> None:
        """The site sends a small frame."""
        if self.closed:
            return
        self.session.send(frame)
        self.heard.append(frame)
        match frame:
            case Hello():
                self._hello = frame
                self.say(Challenge(self._nonce))
            case Proof():
                self._check(frame)
                self.say(self._coordinator.welcome())

    def post_message(self, message: Envelope) -> None:
        """The site sends a reply."""
        for frame in frames_of(message):
            self.session.send(frame)
            taken = self._receiver.feed(frame)
        assert isinstance(taken, Envelope)
        self.replies.append(taken)
        if self._coordinator.receives:
            self.say(Received(taken.message_id))

    def say(self, *frames: Frame) -> None:
        """The coordinator sends frames."""
        for frame in frames:
            self._arrived(self, encode_frame(frame))

    def order(self, envelope: Envelope) -> None:
        """The coordinator sends an order."""
        self.say(*frames_of(envelope))

    def lose(self) -> None:
        """The connection breaks."""
        self._arrived(self, SessionError("the connection broke"))

    def consumed(self) -> None:
        """Nothing waits here."""

    def close(self, farewell: Goodbye | None = None) -> None:
        """The site ends it."""
        if farewell is not None:
            self.post(farewell)
        self.closed = True

    def told(self, kind: type[Frame]) -> list[Any]:
        """The frames of a kind that the site sent."""
        return [frame for frame in self.heard if isinstance(frame, kind)]

    def _check(self, proof: Proof) -> None:
        hello, joined = self.hello, self._coordinator.joined
        transcript = session_transcript(
            hello.federation, hello.site, hello.instance, hello.nonce, self._nonce
        )
        key = joined.consortium.members[hello.site].node_key
        verify_signature(key, "session", transcript, proof.signature.hex())


class Running:
    """A service on a thread of its own; ``with`` stops it."""

    def __init__(
        self,
        joined: Joined,
        dial: Callable[[Arrived], Any],
        app: EchoApp,
        *,
        stop_seconds: float = 5.0,
    ) -> None:
        self.app = app
        identity: IdentityFolder = joined.identity
        self.outbox = Outbox(identity.outbox, identity.vault())
        self.service = SiteService(
            app=app,
            manifest=MANIFEST,
            identity=identity,
            membership=joined.membership,
            outbox=self.outbox,
            dial=dial,
            stop_seconds=stop_seconds,
        )
        self.ended: bool | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self.app.go.set()
        self.service.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def stopped(self) -> bool:
        """Tells it to stop and waits; whether all work had ended."""
        self.service.stop()
        self._thread.join(20)
        assert self.ended is not None, "the service goes on"
        return self.ended

    def _run(self) -> None:
        self.ended = self.service.run()


def until(what: str, look: Callable[[], Any], seconds: float = 10) -> Any:
    """What ``look`` gives, as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds:g} seconds for {what}"
        time.sleep(0.005)
    return found


def the_reply(envelope: Envelope) -> TrainReply:
    """The document in a reply."""
    return decode(TrainReply, envelope.documents["reply"])
