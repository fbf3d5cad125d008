"""The site's service: sessions, one after the other, for months; orders in, answers out.

One thread does everything but train and wait for the network. It takes what happens from one
inbox: frames, ends of streams, finished work, the order to stop.
"""

import contextlib
import logging
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from secrets import randbelow, token_hex
from typing import Any, Final, Protocol, TypeAlias

from client.connection import Connection, Event, Opened
from client.desk import Desk
from client.identity_folder import IdentityFolder
from client.membership import check_admission, check_clock
from client.outbox import Outbox
from client.renewal import Renewal
from client.worker import App, Worker
from core.array_codec import Manifest
from core.errors import CloisterError, SessionError
from core.wire.documents import Invitation
from core.wire.frames import Frame, Goodbye, Heartbeat, Received, Settled, decode_frame
from core.wire.session import Session
from core.wire.transfer import Envelope, Rejected
from privacy.identities.clock import utc_now

logger = logging.getLogger(__name__)

# The longest that a coordinator may be configured to wait for a site.
SILENCE_SECONDS: Final = 20.0
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 30.0
_TICK_SECONDS: Final = 0.5
# Told to stop, with every answer given: so long may the coordinator take to receive the last.
_DELIVERY_SECONDS: Final = 5.0


class OpenStream(Protocol):
    """A stream to the coordinator; see ``client.session_io.Stream``."""

    session: Session
    channel: Any

    def post(self, frame: Frame) -> None:
        """Sends a small frame."""

    def post_message(self, message: Envelope) -> None:
        """Sends a message, once the session is open."""

    def consumed(self) -> None:
        """The last bytes are done with."""

    def close(self, farewell: Goodbye | None = None) -> None:
        """Ends the stream."""


Arrived: TypeAlias = Callable[[Any, bytes | CloisterError], None]
Dial: TypeAlias = Callable[[Arrived], OpenStream]


@dataclass(frozen=True)
class _Arrival:
    stream: OpenStream
    what: bytes | CloisterError


@dataclass(frozen=True)
class _Finished:
    order_id: str
    reply: Envelope


class _Stop:
    """Told to stop."""


class SiteService:
    """Keeps a session open, works on what is ordered, and delivers what was computed.

    Guarantees:
        An order is worked on once, however often it comes; an answer is sent until it is
        received, over as many sessions as that takes. Nothing is worked on before the roster
        that the coordinator shows was checked against the pinned one.

    Args:
        app: Answers orders, on a thread of its own.
        manifest: What the arrays of an order must be.
        identity: Who the site is.
        membership: What it pinned at joining.
        outbox: Forgets what the coordinator settles.
        dial: Opens a stream; raises a CloisterError where that cannot be done.
        stop_seconds: When told to stop, work in progress has this long to end.
        threads: Threads inside tensor operations; 0 leaves it to torch.
        release: Frees the app's memory between runs.
    """

    def __init__(
        self,
        *,
        app: App,
        manifest: Manifest,
        identity: IdentityFolder,
        membership: Invitation,
        outbox: Outbox,
        dial: Dial,
        stop_seconds: float,
        threads: int = 0,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._manifest = manifest
        self._identity = identity
        self._membership = membership
        self._node_key = identity.node_key()
        self._outbox = outbox
        self._dial = dial
        self._stop_seconds = stop_seconds
        self._renewal = Renewal(identity, membership)
        self._instance = token_hex(16)
        self._inbox: queue.SimpleQueue[_Arrival | _Finished | _Stop] = queue.SimpleQueue()
        self._worker = Worker(
            app,
            membership.site,
            lambda order_id, reply: self._inbox.put(_Finished(order_id, reply)),
            threads=threads,
            release=release,
        )
        self._desk = Desk(membership.site, self._worker.submit)
        self._stream: OpenStream | None = None
        self._connection: Connection | None = None
        self._outdated: OpenStream | None = None
        self._is_open = False
        self._last_heard = 0.0
        self._dial_at = 0.0
        self._failures = 0
        self._stop_at: float | None = None
        self._leave_at: float | None = None

    def stop(self) -> None:
        """Told to stop; may be called from a signal handler, and from any thread."""
        self._inbox.put(_Stop())

    def run(self) -> bool:
        """Runs until it is told to stop.

        Returns:
            Whether all work has ended; else a round was dropped by name, and its thread goes on
            until the process ends.
        """
        while True:
            self._tick(time.monotonic())
            if self._may_leave():
                break
            with contextlib.suppress(queue.Empty):
                self._take(self._inbox.get(timeout=_TICK_SECONDS))
        logger.info("stops")
        if self._stream is not None:
            self._stream.close(Goodbye("site-stopping"))
        return self._worker.close(timeout_seconds=0.2)

    def _may_leave(self) -> bool:
        if self._leave_at is None or self._desk.working:
            return False
        delivered = not self._desk.undelivered or not self._is_open
        return delivered or time.monotonic() >= self._leave_at

    def _tick(self, now: float) -> None:
        if self._stop_at is not None and (now >= self._stop_at or not self._desk.working):
            for refusal in self._desk.drop():
                self._send(refusal)
            if self._leave_at is None:
                self._leave_at = now + _DELIVERY_SECONDS
        if self._stream is None:
            if now >= self._dial_at and self._leave_at is None:
                self._connect(now)
        elif now - self._last_heard > SILENCE_SECONDS:
            self._lost(SessionError(f"heard nothing of the coordinator for {SILENCE_SECONDS:g} s"))
        elif self._is_open:
            self._renew(self._stream)

    def _renew(self, stream: OpenStream) -> None:
        """Renews when due; then, between orders, a new session shows the new certificate.

        The coordinator ends a session with the certificate that opened it.
        """
        if self._renewal.renew_when_due(stream.channel, utc_now()):
            self._outdated = stream
        if self._outdated is stream and not self._desk.pending:
            logger.info("opens a new session with the new certificate")
            stream.close()
            self._forget_stream()

    def _take(self, item: _Arrival | _Finished | _Stop) -> None:
        match item:
            case _Stop():
                if self._stop_at is None:
                    logger.info("told to stop")
                    self._stop_at = time.monotonic() + self._stop_seconds
                    self._desk.stop()
            case _Finished(order_id, reply):
                wanted = self._desk.finished(order_id, reply)
                if wanted is not None:
                    self._send(wanted)
            case _Arrival(stream, what):
                if stream is self._stream:  # else of a stream that was given up
                    self._arrived(stream, what)

    def _arrived(self, stream: OpenStream, what: bytes | CloisterError) -> None:
        if isinstance(what, CloisterError):
            self._lost(what)
            return
        self._last_heard = time.monotonic()
        try:
            event = self._connection.feed(decode_frame(what)) if self._connection else None
            if event is not None:
                self._handle(stream, event)
        except CloisterError as error:
            self._lost(error, Goodbye(error.code))
        finally:
            stream.consumed()

    def _handle(self, stream: OpenStream, event: Event) -> None:
        match event:
            case Opened():
                self._opened(stream, event)
            case Envelope():
                receipt, answer = self._desk.take(event)
                stream.post(receipt)
                if answer is not None:
                    self._send(answer)
            case Rejected():
                stream.post(self._desk.reject(event))
            case Received():
                self._desk.received(event)
            case Settled(run_id, server_round):
                self._settle(run_id, server_round)
            case Goodbye(code, reason):
                raise SessionError(f"the coordinator said goodbye ({code}): {reason}")

    def _opened(self, stream: OpenStream, opened: Opened) -> None:
        """Checks who let this site in, and picks up where the last session ended.

        Raises:
            IdentityError: The roster or the clock is not what it must be.
        """
        now = utc_now()
        check_clock(opened.time, now)
        pinned = self._identity.roster()
        check_admission(self._identity, self._membership, opened.roster, now)
        if pinned is None or opened.roster.roster.epoch > pinned.roster.epoch:
            self._identity.pin_roster(opened.roster)
        self._is_open, self._failures = True, 0
        logger.info("the session with %s is open", self._membership.address)
        stream.post(Heartbeat())
        for reply in self._desk.undelivered:
            self._send(reply)

    def _settle(self, run_id: str, server_round: int) -> None:
        try:
            self._outbox.settle(run_id, server_round)
        except CloisterError as error:  # the reply is kept: no reason to end the session
            logger.error("cannot forget a settled reply (%s): %s", error.code, error)

    def _send(self, message: Envelope) -> None:
        """Sends it, where a session is open; else the next session does."""
        if self._stream is not None and self._is_open:
            self._stream.post_message(message)

    def _connect(self, now: float) -> None:
        try:
            pinned = self._identity.roster()
            stream = self._dial(lambda stream, what: self._inbox.put(_Arrival(stream, what)))
        except CloisterError as error:
            self._pause(error)
            return
        self._stream, self._last_heard = stream, now
        self._connection = Connection(
            stream.session,
            self._membership,
            self._node_key,
            instance=self._instance,
            manifest=self._manifest,
            post=stream.post,
        )
        self._connection.begin(pinned.roster.epoch if pinned else 0, self._desk.pending)

    def _lost(self, error: CloisterError, farewell: Goodbye | None = None) -> None:
        if self._stream is not None:
            self._stream.close(farewell)
        self._forget_stream()
        self._pause(error)

    def _forget_stream(self) -> None:
        self._stream, self._connection, self._outdated = None, None, None
        self._is_open = False

    def _pause(self, error: CloisterError) -> None:
        """Exponential back-off with full jitter: sites do not come back all at once.

        Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
        """
        longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**self._failures)
        pause = longest * randbelow(1000) / 1000
        self._failures = min(self._failures + 1, 16)
        self._dial_at = time.monotonic() + pause
        logger.warning("no session (%s): %s; again in %.1f s", error.code, error.message, pause)
