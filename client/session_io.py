"""One stream to the coordinator: frames to bytes, and the two threads that gRPC wants for it.

gRPC asks for the next bytes to send on a thread of its own; another thread reads. What is read
goes to one inbox, to be worked on by the service's single thread; at most ``_READ_AHEAD`` frames
wait there, so that the network waits for the site and not its memory.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

import grpc

from client.calls import error_of
from core.errors import CloisterError, SessionError
from core.wire.channel import SESSION
from core.wire.frames import Challenge, Frame, Goodbye, Heartbeat, decode_frame, encode_frame
from core.wire.session import Session
from core.wire.transfer import Envelope, frames_of

HEARTBEAT_SECONDS: Final = 7.0
_READ_AHEAD: Final = 16
_LEAVE_SECONDS: Final = 2.0
_PROBE_SECONDS: Final = 10.0


class Outgoing(Iterator[bytes]):
    """What the site sends, as gRPC asks for it.

    Small frames go before the next chunk of a message; messages go one after the other, and not
    before the session is open.

    Args:
        session: Told of each frame before it is sent.
        heartbeat_seconds: An open session is never silent for longer.
    """

    def __init__(self, session: Session, *, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._session = session
        self._heartbeat_seconds = heartbeat_seconds
        self._small: deque[Frame] = deque()
        self._messages: deque[Envelope] = deque()
        self._frames: Iterator[Frame] | None = None
        self._closed = False
        self._last_sent = 0.0
        self._wake = threading.Condition()

    def post(self, frame: Frame) -> None:
        """Sends a frame as soon as possible."""
        with self._wake:
            if self._closed or (isinstance(frame, Heartbeat) and self._small):
                return  # of no use any more; or what waits there is a sign of life as well
            self._small.append(frame)
            self._wake.notify()

    def post_message(self, message: Envelope) -> None:
        """Sends a message after those before it."""
        with self._wake:
            self._messages.append(message)
            self._wake.notify()

    def close(self) -> None:
        """Nothing follows but the small frames that wait."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        with self._wake:
            while (frame := self._next()) is None:
                if self._closed:
                    raise StopIteration
                due = self._last_sent + self._heartbeat_seconds - time.monotonic()
                self._wake.wait(max(due, 0.0) if self._session.is_open else None)
            self._session.send(frame)
            self._last_sent = time.monotonic()
        return encode_frame(frame)

    def _next(self) -> Frame | None:
        if self._small:
            return self._small.popleft()
        if self._closed or not self._session.is_open:
            return None
        while self._frames is not None or self._messages:
            if self._frames is None:
                self._frames = frames_of(self._messages.popleft())
            frame = next(self._frames, None)
            if frame is not None:
                return frame
            self._frames = None
        if time.monotonic() >= self._last_sent + self._heartbeat_seconds:
            return Heartbeat()
        return None


def probe(channel: Any, hello: Frame) -> None:
    """Says hello, waits to be challenged, and goes: an open session of the site's stays as it is.

    Raises:
        IdentityError: The coordinator does not let this site in.
        SessionError: It cannot be reached, or answers something else.
    """
    done = threading.Event()

    def frames() -> Iterator[bytes]:
        yield encode_frame(hello)
        done.wait(_PROBE_SECONDS)  # the end of the frames would be the end of the handshake

    call = channel.stream_stream(SESSION)(frames(), timeout=_PROBE_SECONDS)
    try:
        answer = decode_frame(next(call))
        if not isinstance(answer, Challenge):
            raise SessionError(f"expected a challenge, got a {type(answer).__name__}")
    except StopIteration:
        raise SessionError("expected a challenge, got the end of the stream") from None
    except grpc.RpcError as failure:
        raise error_of(failure) from failure
    finally:
        done.set()
        call.cancel()


class Stream:
    """An open call of ``Session``.

    Args:
        channel: The channel, which is closed with the stream.
        arrived: Told from the reading thread: the next bytes, or why there are no more. It is
            called for the next bytes only after ``consumed``, but for some that are read ahead.
    """

    def __init__(
        self,
        channel: Any,
        arrived: Callable[["Stream", bytes | CloisterError], None],
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self.session = Session("site")
        self.channel = channel
        self._outgoing = Outgoing(self.session, heartbeat_seconds=heartbeat_seconds)
        self.post = self._outgoing.post
        self.post_message = self._outgoing.post_message
        self._arrived = arrived
        self._room = threading.Semaphore(_READ_AHEAD)
        self._closed = False
        self._call = channel.stream_stream(SESSION)(self._outgoing)
        self._reader = threading.Thread(target=self._read, name="session", daemon=True)
        self._reader.start()

    def consumed(self) -> None:
        """What ``arrived`` was told last is done with."""
        self._room.release()

    def close(self, farewell: Goodbye | None = None) -> None:
        """Ends the stream; with a farewell, after the coordinator had a moment to read it."""
        if farewell is not None:
            self.post(farewell)
        self._closed = True
        self._outgoing.close()
        self._room.release(_READ_AHEAD)
        if farewell is not None:
            self._reader.join(_LEAVE_SECONDS)
        self._call.cancel()
        self.channel.close()

    def _read(self) -> None:
        try:
            for data in self._call:
                if not self._closed:  # else to the end, which shows that the farewell was read
                    self._room.acquire()
                    self._arrived(self, data)
            error: CloisterError = SessionError("the coordinator ended the session")
        except grpc.RpcError as failure:
            error = error_of(failure)
        self._arrived(self, error)
