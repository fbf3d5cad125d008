"""What a site has to do and to deliver, over any number of sessions. No IO.

An order has an id of 128 random bits. One that comes again, because its receipt was lost with a
session, is the same order: it is worked on once and answered once.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from client.flower import to_refusal
from core.errors import CloisterError, SiteStoppingError
from core.wire.frames import Received
from core.wire.transfer import Envelope, Rejected

logger = logging.getLogger(__name__)

# A coordinator gives one order after another; more at once would only wait here with their weights.
MAX_WAITING: Final = 4
BUSY: Final = "site-busy"


@dataclass
class _Entry:
    order: Envelope | None
    reply: Envelope | None = None


class Desk:
    """Orders in work, and answers that are not yet delivered.

    Args:
        site: The site's name.
        work: Starts work on an order; its end is told to ``finished``.
    """

    def __init__(self, site: str, work: Callable[[Envelope], None]) -> None:
        self._site = site
        self._work = work
        self._entries: dict[str, _Entry] = {}
        self._stopping = False

    @property
    def pending(self) -> tuple[str, ...]:
        """The orders in work, and those whose answers are not delivered."""
        return tuple(self._entries)

    @property
    def working(self) -> bool:
        """Whether an order waits for its answer."""
        return any(entry.reply is None for entry in self._entries.values())

    @property
    def undelivered(self) -> tuple[Envelope, ...]:
        """The answers that no receipt came for: what a new session begins with."""
        return tuple(entry.reply for entry in self._entries.values() if entry.reply is not None)

    def take(self, order: Envelope) -> tuple[Received, Envelope | None]:
        """An order came in whole: the receipt, and an answer where there is one at once."""
        receipt = Received(order.message_id)
        if order.message_id in self._entries:
            return receipt, None
        if len(self._entries) >= MAX_WAITING:
            logger.warning("expected at most %d orders at a time, got another", MAX_WAITING)
            return Received(order.message_id, BUSY), None
        if self._stopping:
            entry = _Entry(None, self._no(order))
            self._entries[order.message_id] = entry
            return receipt, entry.reply
        # Without its weights: they are the worker's to keep as long as it needs them.
        self._entries[order.message_id] = _Entry(replace(order, arrays_name="", arrays=None))
        self._work(order)
        return receipt, None

    def reject(self, rejected: Rejected) -> Received:
        """What came does not fit: a receipt that says so."""
        logger.warning("an order does not fit (%s): %s", rejected.code, rejected.message)
        return Received(rejected.message_id, rejected.code)

    def finished(self, order_id: str, reply: Envelope) -> Envelope | None:
        """Work on an order ended; gives the answer to send now, if it is still wanted."""
        entry = self._entries.get(order_id)
        if entry is None or entry.reply is not None:
            return None  # dropped meanwhile, by name
        entry.order, entry.reply = None, reply
        return reply

    def received(self, receipt: Received) -> None:
        """The coordinator has an answer, or says why it does not take it."""
        for order_id, entry in list(self._entries.items()):
            if entry.reply is not None and entry.reply.message_id == receipt.message_id:
                del self._entries[order_id]
                if receipt.code:
                    logger.warning("the coordinator took no answer: %s", receipt.code)

    def stop(self) -> None:
        """From now on every new order is refused by name."""
        self._stopping = True

    def drop(self) -> tuple[Envelope, ...]:
        """Gives up what is in work: refusals, by name, to send in its place."""
        refusals = []
        for entry in self._entries.values():
            if entry.order is not None:
                logger.warning("drops order %s: told to stop", entry.order.message_id)
                entry.reply = self._no(entry.order)
                entry.order = None
                refusals.append(entry.reply)
        return tuple(refusals)

    def _no(self, order: Envelope) -> Envelope:
        error: CloisterError = SiteStoppingError(
            "expected a site that goes on, got one that was told to stop",
            hint="it takes part again when it is started again",
        )
        return to_refusal(order, error, self._site)
