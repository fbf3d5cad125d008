"""Session streams: from a connection to an open link of the grid, and the watch over all of them.

One thread of gRPC's sends a stream's frames and one of our own reads them; nobody polls. Twice a
second one more looks for streams whose peer must not or cannot go on.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import grpc

from coordinator.grids.link import Link
from coordinator.grids.remote import RemoteGrid
from coordinator.service.peers import Gate, Handshake, Peer, member_of
from coordinator.service.refusals import give_up, refuse
from core.errors import CloisterError, IdentityError, SessionError, TooManyError
from core.wire.documents import SignedRoster
from core.wire.frames import Frame, decode_frame, encode_frame
from core.wire.session import Session
from privacy.identities.clock import utc_now

logger = logging.getLogger(__name__)

WATCH_SECONDS: Final = 0.5
# A farewell has this long to be sent before the stream is cut.
_FAREWELL_SECONDS: Final = 1.0
# Where the roster cannot be read for longer, nobody counts as approved.
_ROSTER_SECONDS: Final = 30.0
_MAX_HANDSHAKES_PER_SITE: Final = 2
# The open one, two that want to take its place, and one that was replaced and is being cut: else a
# site that opens one session after another takes all streams.
MAX_STREAMS_PER_SITE: Final = 4
# A watch that is so late says that the machine slept or the process got no time.
_STANDSTILL_SECONDS: Final = 4 * WATCH_SECONDS


@dataclass(eq=False)
class _Stream:
    context: grpc.ServicerContext
    peer: Peer
    opened_at: float
    table: Session = field(default_factory=lambda: Session("coordinator"))
    link: Link | None = None

    @property
    def site(self) -> str:
        return self.peer.entry.name


class Sessions:
    """The streams of all sites.

    Guarantees:
        A link of the grid is opened only after the site's proof. A site has one link: a newer
        proof replaces the older one. A stream of a site that is revoked, whose certificate or
        roster has expired, or of which nothing is heard ends within two seconds of that. What
        goes wrong is named in the log; the peer gets a fixed status.

    Args:
        grid: Where links are opened.
        gate: Tells whose a connection is.
        federation: The federation.
        max_sessions: Streams at a time.
        handshake_seconds: A stream that is not open by then is cut.
        now: UTC.
    """

    def __init__(
        self,
        grid: RemoteGrid,
        gate: Gate,
        federation: str,
        *,
        max_sessions: int,
        handshake_seconds: float,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._grid = grid
        self._gate = gate
        self._federation = federation
        self._max_sessions = max_sessions
        self._handshake_seconds = handshake_seconds
        self._now = now
        self._lock = threading.Lock()
        self._streams: set[_Stream] = set()
        self._roster: SignedRoster | None = None
        self._roster_read_at = self._watched_at = time.monotonic()

    def handle(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """gRPC's handler of one stream: the site's frames in, ours out."""
        stream: _Stream | None = None
        try:
            peer = self._gate.identify(context.auth_context())
            member_of(peer)
            self._roster, self._roster_read_at = peer.roster, time.monotonic()
            stream = _Stream(context, peer, time.monotonic())
            self._enter(stream)
            # What gRPC does not ask for any more is not resumed: this is how it says so.
            context.add_callback(lambda: self._leave(stream))
            for frame in self._frames(stream, requests):
                stream.table.send(frame)
                data = encode_frame(frame)
                self._grid.traffic.sent(stream.site, len(data))
                yield data
        except CloisterError as error:
            refuse(context, error, "a session")
        except grpc.RpcError:
            pass  # the peer is gone
        except Exception:
            logger.exception("a session failed: a defect of ours")
            give_up(context)
        finally:
            if stream is not None:
                self._leave(stream)

    def watch(self) -> None:
        """Looks over all streams once."""
        now = time.monotonic()
        # Where this process stood still, it is not the sites that were silent.
        if now - self._watched_at < _STANDSTILL_SECONDS:
            self._grid.drop_silent()
        self._watched_at = now
        roster = self._present_roster()
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            if stream.link is None:
                if now - stream.opened_at > self._handshake_seconds:
                    logger.warning("%s did not finish its handshake: cut", stream.site)
                    stream.context.cancel()
            elif stream.link.closed_at is not None:
                if now - stream.link.closed_at > _FAREWELL_SECONDS:
                    stream.context.cancel()
            else:
                self._check_still(stream, roster)

    def close(self, code: str, reason: str) -> None:
        """Says goodbye to all sites."""
        for site in self._grid.sites():
            self._grid.disconnect(site, code, reason)

    def _frames(self, stream: _Stream, requests: Iterator[bytes]) -> Iterator[Frame]:
        handshake = Handshake(self._federation, stream.peer)
        yield handshake.challenge(self._next(stream, requests))
        welcome = handshake.welcome(self._next(stream, requests), self._now())
        hello = handshake.hello
        link = self._grid.connect(hello.site, hello.instance, hello.pending)
        stream.link = link
        logger.info("%s opened a session (instance %s)", hello.site, hello.instance[:8])
        yield welcome
        reader = threading.Thread(
            target=self._read, args=(stream, link, requests), name=f"from-{hello.site}", daemon=True
        )
        reader.start()
        yield from link.frames()

    def _next(self, stream: _Stream, requests: Iterator[bytes]) -> Frame:
        data = next(requests, None)
        if data is None:
            raise SessionError("expected a handshake, got the end of the stream")
        frame = decode_frame(data)
        stream.table.receive(frame)
        self._grid.traffic.received(stream.site, len(data))
        return frame

    def _read(self, stream: _Stream, link: Link, requests: Iterator[bytes]) -> None:
        """Hands the site's frames to the grid until its stream ends."""
        problem: CloisterError | None = None
        try:
            for data in requests:
                self._grid.traffic.received(stream.site, len(data))
                frame = decode_frame(data)
                stream.table.receive(frame)
                self._grid.hear(link, frame)
        except CloisterError as error:
            problem = error
        except grpc.RpcError:
            pass  # the connection broke, or was cut
        except Exception:
            logger.exception("reading from %s failed: a defect of ours", stream.site)
            problem = SessionError("the session failed here")
        self._grid.broken(link, problem)

    def _enter(self, stream: _Stream) -> None:
        with self._lock:
            if len(self._streams) >= self._max_sessions:
                raise TooManyError(f"expected at most {self._max_sessions} streams, got one more")
            of_site = [other for other in self._streams if other.site == stream.site]
            greeting = [other for other in of_site if other.link is None]
            if len(greeting) >= _MAX_HANDSHAKES_PER_SITE:
                raise TooManyError(
                    f"expected at most {_MAX_HANDSHAKES_PER_SITE} handshakes of {stream.site} at a "
                    "time, got one more"
                )
            if len(of_site) >= MAX_STREAMS_PER_SITE:
                raise TooManyError(
                    f"expected at most {MAX_STREAMS_PER_SITE} streams of {stream.site} at a time, "
                    "got one more"
                )
            self._streams.add(stream)

    def _leave(self, stream: _Stream) -> None:
        with self._lock:
            known = stream in self._streams
            self._streams.discard(stream)
        if stream.link is not None:
            self._grid.broken(stream.link)
            if known:
                logger.info("%s's session has ended", stream.site)

    def _check_still(self, stream: _Stream, roster: SignedRoster | None) -> None:
        try:
            if roster is None:
                raise IdentityError("expected a roster that is valid now, got none")
            self._gate.check_still(stream.peer, roster)
        except IdentityError as error:
            logger.warning("%s is disconnected: %s", stream.site, error.message)
            self._grid.disconnect(stream.site, error.code, error.message)

    def _present_roster(self) -> SignedRoster | None:
        try:
            self._roster, self._roster_read_at = self._gate.roster(), time.monotonic()
        except IdentityError as error:
            if self._roster is not None:
                logger.warning("no site is approved any more: %s", error.message)
            self._roster = None
        except CloisterError as error:
            # Not read is not revoked: but it must not stay so.
            logger.error("the roster cannot be read: %s", error.message)
            if time.monotonic() - self._roster_read_at > _ROSTER_SECONDS:
                self._roster = None
        return self._roster


class Watch:
    """A thread that calls something twice a second until it is closed."""

    def __init__(self, look: Callable[[], Any]) -> None:
        self._look = look
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="session-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it, and waits for the look it is at."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(WATCH_SECONDS):
            try:
                self._look()
            except Exception:
                # The next look may do better; without a watch, revoked sites would stay.
                logger.exception("the watch over the sessions failed: a defect of ours")
