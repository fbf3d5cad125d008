"""One open session with a site, seen from the grid: what is sent next, and when it last spoke.

Gives frames and is told of frames; how they travel is not its matter. Small frames go before the
next chunk of a message, so that a heartbeat never waits behind a model.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from coordinator.grids.dispatch import Dispatch, Order
from core.errors import CloisterError, SessionError
from core.wire.frames import Begin, End, Frame, Goodbye, Heartbeat
from core.wire.transfer import Receiver, frames_of

# A site that asks for answers and does not read them; an honest one never has so many waiting.
_MAX_SMALL_FRAMES: Final = 256
# Replies to nothing: as many as a site may list as pending when it opens its session.
_MAX_STRAY_REPLIES: Final = 64
# Frames that are no part of a tensor: each costs us. An honest site sends a few in a round, and
# small rounds may come by the hundred in a second.
FRAMES_PER_SECOND: Final = 1000
_FRAMES_AT_ONCE: Final = 1000


class Traffic(Protocol):
    """Counts what crosses the wire; called from several threads at once."""

    def sent(self, site: str, num_bytes: int) -> None:
        """A frame went to ``site``."""

    def received(self, site: str, num_bytes: int) -> None:
        """A frame came from ``site``."""


class Uncounted:
    """Counts nothing."""

    def sent(self, site: str, num_bytes: int) -> None:
        """Ignored."""

    def received(self, site: str, num_bytes: int) -> None:
        """Ignored."""


class Link:
    """A session from its Welcome to its end.

    One thread takes frames from ``frames``; others may call everything else.

    Args:
        site: Whose session.
        dispatch: Told how far each order got.
        receiver: Puts the site's messages together.
        lock: Guards ``dispatch`` and every link.
        heartbeat_seconds: Something is sent at least this often.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        site: str,
        dispatch: Dispatch,
        receiver: Receiver,
        *,
        lock: threading.RLock,
        heartbeat_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.site = site
        self.receiver = receiver
        self.begin: Begin | None = None
        """The message that arrives, or the last one that did."""
        self.last_heard = clock()
        self.closed_at: float | None = None
        """When it became of no more use; its stream ends a moment later."""
        self._dispatch = dispatch
        self._lock = lock
        self._wake = threading.Condition(lock)
        self._heartbeat_seconds = heartbeat_seconds
        self._clock = clock
        self._last_sent = self.last_heard
        self._small: deque[Frame] = deque()
        self._orders: deque[Order] = deque()
        self._transfer: tuple[Order, Iterator[Frame]] | None = None
        self._error: CloisterError | None = None
        self._strays = 0
        self._allowance, self._counted_at = float(_FRAMES_AT_ONCE), self.last_heard

    def send(self, order: Order) -> None:
        """Sends an order after those before it."""
        with self._wake:
            self._orders.append(order)
            self._wake.notify()

    def withdraw(self, order: Order) -> None:
        """Does not send an order, where that has not begun."""
        with self._lock:
            if order in self._orders:
                self._orders.remove(order)

    def post(self, frame: Frame) -> None:
        """Sends a small frame before anything else.

        Raises:
            SessionError: The site asks and does not read.
        """
        with self._wake:
            if len(self._small) >= _MAX_SMALL_FRAMES:
                raise SessionError(f"expected {self.site} to read what it is sent, it does not")
            self._small.append(frame)
            self._wake.notify()

    def count_stray(self) -> None:
        """Counts a reply to nothing.

        Raises:
            SessionError: There were too many.
        """
        self._strays += 1
        if self._strays > _MAX_STRAY_REPLIES:
            raise SessionError(f"expected replies to orders from {self.site}, got others only")

    def count_frame(self) -> None:
        """Counts a frame that is no part of a tensor.

        Raises:
            SessionError: There were too many in too short a time.
        """
        now = self._clock()
        earned = (now - self._counted_at) * FRAMES_PER_SECOND
        self._allowance = min(self._allowance + earned, _FRAMES_AT_ONCE) - 1
        self._counted_at = now
        if self._allowance < 0:
            raise SessionError(
                f"expected at most {FRAMES_PER_SECOND} small frames a second of {self.site}, "
                "got more"
            )

    def close(self, *, farewell: Goodbye | None = None, error: CloisterError | None = None) -> None:
        """Ends the session: after a farewell, by raising ``error`` in ``frames``, or silently."""
        with self._wake:
            if self.closed_at is not None:
                return
            self.closed_at = self._clock()
            self._error = error
            self._small.clear()
            self._orders.clear()
            if farewell is not None:
                self._small.append(farewell)
            self._wake.notify()

    def poll(self, now: float) -> Frame | None:
        """The next frame to send, if there is one; for the one thread that sends."""
        frame = self._next_small() or self._next_of_order()
        if frame is None and self.closed_at is None:
            frame = Heartbeat() if now - self._last_sent >= self._heartbeat_seconds else None
        if frame is not None:
            self._last_sent = now
        return frame

    def frames(self) -> Iterator[Frame]:
        """Frames to send, as they come up, until the session ends.

        Raises:
            CloisterError: Why it was closed, or why an order cannot be sent.
        """
        while True:
            frame = self.poll(self._clock())
            if frame is not None:
                yield frame
                continue
            with self._wake:
                if self.closed_at is not None and not self._small:
                    break
                if not (self._small or self._orders):
                    due = self._last_sent + self._heartbeat_seconds - self._clock()
                    self._wake.wait(max(due, 0.0))
        if self._error is not None:
            raise self._error

    def _next_small(self) -> Frame | None:
        with self._lock:
            return self._small.popleft() if self._small else None

    def _next_of_order(self) -> Frame | None:
        if self.closed_at is not None:
            return None
        if self._transfer is None:
            self._transfer = self._begin_next()
        if self._transfer is None:
            return None
        order, frames = self._transfer
        frame = next(frames)
        if isinstance(frame, End):
            self._transfer = None
            with self._lock:
                self._dispatch.sent(order)
        return frame

    def _begin_next(self) -> tuple[Order, Iterator[Frame]] | None:
        with self._lock:
            while self._orders:
                order = self._orders.popleft()
                if order.envelope is not None and self._dispatch.sending(order):
                    return order, frames_of(order.envelope)
        return None
