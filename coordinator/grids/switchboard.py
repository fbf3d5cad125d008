"""The sites' side of the grid: sessions that open, speak and end, and what that means for orders.

Called by whoever carries frames: ``connect`` when a site has proved who it is, ``hear`` for each
frame of the site, ``broken`` when its stream ends.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from coordinator.grids.dispatch import Answer, Dispatch, Failure
from coordinator.grids.envelopes import answered_round
from coordinator.grids.link import Link, Traffic, Uncounted
from core.array_codec import Manifest
from core.coordinator_config import LivenessSection
from core.errors import CloisterError, SessionError
from core.wire.frames import (
    MAX_REASON,
    Begin,
    Chunk,
    End,
    Frame,
    Goodbye,
    Heartbeat,
    Received,
    Settled,
)
from core.wire.transfer import Envelope, Receiver, Rejected

logger = logging.getLogger(__name__)

# Runs whose last settled round is told to a site that comes back.
_MAX_SETTLED_RUNS: Final = 16


class Switchboard:
    """The open sessions of one grid.

    Guarantees:
        A site has one session: a newer one replaces the older. Arrays of a reply fit the manifest
        of the run before they are kept. What a replaced or ended session still says changes
        nothing.

    Args:
        liveness: When a site counts as away.
        traffic: Counts frames and bytes.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        liveness: LivenessSection,
        *,
        traffic: Traffic | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.traffic: Traffic = traffic or Uncounted()
        self._liveness = liveness
        self._clock = clock
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._dispatch = Dispatch(liveness.silence_seconds)
        self._links: dict[str, Link] = {}
        self._manifest: Manifest = {}
        self._settled: dict[str, int] = {}

    def connect(self, site: str, instance: str, pending: Sequence[str]) -> Link:
        """A site has proved who it is: opens its session, in place of an older one.

        Args:
            site: Who.
            instance: Which process of the site's.
            pending: The messages that it works on or whose replies it still has.
        """
        receiver = Receiver(lambda begin: self._expected(site, begin))
        with self._changed:
            link = Link(
                site,
                self._dispatch,
                receiver,
                lock=self._lock,
                heartbeat_seconds=self._liveness.heartbeat_seconds,
                clock=self._clock,
            )
            for run_id, server_round in self._settled.items():
                link.post(Settled(run_id, server_round))
            before = self._links.get(site)
            self._links[site] = link
            self._dispatch.connected(site, link, instance, pending)
            self._changed.notify_all()
        if before is not None:
            before.close(farewell=Goodbye("replaced", "the site opened another session"))
        return link

    def hear(self, link: Link, frame: Frame) -> None:
        """Takes a frame of a site.

        Raises:
            SessionError: The site does what an honest one does not; the session must end.
        """
        if link.closed_at is not None:
            return  # what matters is said again over the next session
        link.last_heard = self._clock()
        if not isinstance(frame, Chunk):
            link.count_frame()
        match frame:
            case Begin() | Chunk() | End():
                if isinstance(frame, Begin):
                    link.begin = frame
                message = link.receiver.feed(frame)
                if message is not None:
                    self._take(link, message)
            case Received(message_id, code):
                with self._changed:
                    if self._links.get(link.site) is link:
                        self._dispatch.delivered(link.site, message_id, code)
                        self._changed.notify_all()
            case Goodbye(code, reason):
                logger.info("%s says goodbye (%s): %s", link.site, code, reason)
                self._end(link, Failure(f"the site said goodbye: {code}"))
                link.close()
            case Heartbeat():
                pass
            case _:
                raise SessionError(f"expected no {type(frame).__name__} in an open session")

    def broken(self, link: Link, error: CloisterError | None = None) -> None:
        """A session's stream has ended; with an error, because the site broke the protocol."""
        failure = None if error is None else Failure(error.message, invalid=True)
        self._end(link, failure)
        link.close(error=error)

    def disconnect(self, site: str, code: str, reason: str) -> None:
        """Ends a site's session on purpose; what it was asked fails at once."""
        with self._lock:
            link = self._links.get(site)
        if link is not None:
            said = ascii(reason)[1:-1][:MAX_REASON]
            self._end(link, Failure(f"the site was disconnected ({code}): {said}"))
            link.close(farewell=Goodbye(code, said))

    def drop_silent(self) -> None:
        """Ends the sessions of sites that were not heard of for too long."""
        limit = self._liveness.silence_seconds
        with self._lock:
            silent = [s for s, seconds in self.sites().items() if seconds > limit]
            links = [self._links[site] for site in silent]
        for link in links:
            error = SessionError(f"nothing was heard of {link.site} for {limit:g} seconds")
            self._end(link, Failure("the site is away: " + error.message))
            link.close(error=error)

    def sites(self) -> Mapping[str, float]:
        """The sites whose session is open, and for how many seconds each was silent."""
        with self._lock:
            now = self._clock()
            return {site: max(now - link.last_heard, 0.0) for site, link in self._links.items()}

    def settle(self, sites: Iterable[str], run_id: str, server_round: int) -> None:
        """Tells sites that replies up to this round are in a checkpoint or will not be used.

        A site that is not there is told when it comes back.
        """
        settled = Settled(run_id, server_round)
        with self._lock:
            self._settled[run_id] = max(server_round, self._settled.pop(run_id, 0))
            if len(self._settled) > _MAX_SETTLED_RUNS:
                del self._settled[next(iter(self._settled))]
            links = [self._links[site] for site in sites if site in self._links]
        for link in links:
            try:
                link.post(settled)
            except SessionError as error:  # this site's trouble, not the run's
                self.broken(link, error)

    def _expected(self, site: str, begin: Begin) -> Manifest:
        with self._lock:
            self._dispatch.check_wanted(site, begin.reply_to)
            return self._manifest

    def _take(self, link: Link, message: Envelope | Rejected) -> None:
        answer: Answer
        if isinstance(message, Rejected):
            answer = Failure(message.message, invalid=True)
        else:
            answer = message
        with self._changed:
            if self._links.get(link.site) is not link:
                return
            code = self._dispatch.answered(link.site, message.reply_to, answer)
            link.post(Received(message.message_id, code))
            self._changed.notify_all()
        if code:
            logger.warning("%s sent a reply that is not used: %s", link.site, code)
        if code in ("late-reply", "unknown-order"):
            link.count_stray()
            self._settle_again(link)

    def _settle_again(self, link: Link) -> None:
        """Of a reply that nobody waits for: tells the site, where its round is over for good.

        Of a round that may be asked once more, the site keeps it.
        """
        stray = answered_round(link.begin.documents) if link.begin is not None else None
        if stray is None:
            return
        run_id, server_round = stray
        with self._lock:
            if server_round <= self._settled.get(run_id, -1):
                link.post(Settled(run_id, self._settled[run_id]))

    def _end(self, link: Link, failure: Failure | None) -> None:
        with self._changed:
            if self._links.get(link.site) is link:
                del self._links[link.site]
            self._dispatch.disconnected(link.site, link, self._clock(), failure=failure)
            self._changed.notify_all()
