"""The grid's books: which site was asked what, how far that got, and when a site counts as away.

Knows no threads, no clock and no Flower: whoever calls it holds a lock and says what time it is.
An order is WAITING until its first frame is sent, SENDING until its last, SENT until the site says
that it has it, then TAKEN. It ends with exactly one answer: a reply or a ``Failure``.
"""

import enum
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

from core.errors import MessageError
from core.wire.transfer import Envelope

# Replies that were taken, remembered so that one which is sent again is not taken for a new one.
_MAX_ANSWERED: Final = 4096


class Progress(enum.Enum):
    """How far an order got."""

    WAITING = enum.auto()
    SENDING = enum.auto()
    SENT = enum.auto()
    TAKEN = enum.auto()


@dataclass(frozen=True)
class Failure:
    """Why an order has no reply."""

    reason: str
    invalid: bool = False
    """There was one, and it was none that can be used; else the site is away or lost it."""


Answer: TypeAlias = Envelope | Failure


@dataclass
class Order:
    """One message to one site."""

    message_id: str
    node: int
    site: str
    envelope: Envelope | None
    """``None`` as soon as nobody needs its arrays any more."""
    progress: Progress = Progress.WAITING
    answer: Answer | None = None
    abandoned: bool = False
    """Nobody waits for it, but the site may be at work on it."""

    def end(self, answer: Answer) -> None:
        """Whatever comes now, this is what came of it."""
        self.answer = answer
        self.envelope = None


class Line(Protocol):
    """The way to a site whose session is open."""

    def send(self, order: Order) -> None:
        """Sends it after those before it."""

    def withdraw(self, order: Order) -> None:
        """Does not send it, where that has not begun."""


@dataclass
class _Site:
    line: Line | None = None
    instance: str = ""
    there_until: float = -math.inf
    """Without a session: until when it is waited for."""
    orders: dict[str, Order] = field(default_factory=dict)
    """What it has not answered, oldest first."""


class Dispatch:
    """Orders and sites of one grid."""

    def __init__(self, silence_seconds: float) -> None:
        self._silence_seconds = silence_seconds
        self._nodes: dict[int, str] = {}
        self._sites: dict[str, _Site] = {}
        self._orders: dict[str, Order] = {}
        self._answered: dict[str, None] = {}

    def begin_run(self, nodes: Mapping[int, str]) -> None:
        """Sets whom the run may ask."""
        self.end_run()
        self._nodes = dict(nodes)

    def end_run(self) -> None:
        """Forgets the run and abandons what it asked."""
        self.abandon(list(self._orders))
        self._nodes = {}
        self._answered = {}

    def free_nodes(self, now: float) -> list[int]:
        """The nodes that can be asked: there, and not at work on an earlier order."""
        return [
            node
            for node, site in self._nodes.items()
            if self._is_there(site, now) and not self._site(site).orders
        ]

    def order(self, message_id: str) -> Order | None:
        """The order of this id, where somebody waits for it."""
        return self._orders.get(message_id)

    def push(self, message_id: str, node: int, envelope: Envelope, now: float) -> Order:
        """Takes an order; one to a node that cannot be asked fails at once."""
        site = self._nodes.get(node, "")
        order = Order(message_id, node, site, envelope)
        self._orders[message_id] = order
        state = self._site(site)
        if not self._is_there(site, now):
            order.end(Failure("the site is unknown or away"))
        elif state.orders:
            order.end(Failure("the site is still at work on an earlier order"))
        else:
            state.orders[message_id] = order
            if state.line is not None:
                state.line.send(order)
        return order

    def pop(self, message_id: str) -> Answer | None:
        """An order's answer, once; ``None`` while there is none, and afterwards."""
        order = self._orders.get(message_id)
        if order is None or order.answer is None:
            return None
        del self._orders[message_id]
        return order.answer

    def abandon(self, message_ids: Iterable[str]) -> None:
        """Nobody waits for these any more; what was not sent never is."""
        for message_id in message_ids:
            order = self._orders.pop(message_id, None)
            if order is None or order.answer is not None:
                continue
            state = self._site(order.site)
            if order.progress is Progress.WAITING:
                del state.orders[message_id]
                if state.line is not None:
                    state.line.withdraw(order)
            else:
                order.abandoned = True

    def connected(
        self, site: str, line: Line, instance: str, pending: Collection[str]
    ) -> Line | None:
        """A site's session is open; what it does not have is sent again.

        Guarantees:
            An order that the site may have begun is sent again only to the same process, which
            knows what it did. A new process that does not have it any more has lost it, and its
            work on it: that order fails, so that the site is asked anew.

        Returns:
            The session before, where it was still open.
        """
        state = self._site(site)
        before, state.line = state.line, line
        same, state.instance = state.instance == instance, instance
        for order in list(state.orders.values()):
            if order.message_id in pending:
                _set_taken(order)
            elif order.abandoned:
                del state.orders[order.message_id]
            elif order.progress in (Progress.WAITING, Progress.SENDING) or (
                same and order.progress is Progress.SENT
            ):
                order.progress = Progress.WAITING
                line.send(order)
            else:
                self._end(order, Failure("the site was restarted and has lost this order"))
        return before

    def disconnected(
        self, site: str, line: Line, now: float, *, failure: Failure | None = None
    ) -> bool:
        """A session has ended; false where it was not the present one.

        Args:
            site: Whose.
            line: Which.
            now: The time.
            failure: Why it is of no use to wait for the site; ``None`` to wait a while.
        """
        state = self._site(site)
        if state.line is not line:
            return False
        state.line = None
        if failure is None:
            state.there_until = now + self._silence_seconds
            return True
        state.there_until = -math.inf
        self._fail_all(state, failure)
        return True

    def sending(self, order: Order) -> bool:
        """The order's first frame goes out; false where nobody wants that any more."""
        if order.answer is not None or order.message_id not in self._site(order.site).orders:
            return False
        order.progress = Progress.SENDING
        return True

    def sent(self, order: Order) -> None:
        """The order's last frame went out."""
        if order.progress is Progress.SENDING:
            order.progress = Progress.SENT

    def delivered(self, site: str, message_id: str, code: str) -> None:
        """The site says that it has an order whole, or with a code why it does not want it."""
        order = self._site(site).orders.get(message_id)
        if order is None:
            return
        if code:
            self._end(order, Failure(f"the site did not take the order: {code}"))
        else:
            _set_taken(order)

    def check_wanted(self, site: str, reply_to: str) -> None:
        """Checks that a reply that begins answers something.

        Raises:
            MessageError: It answers nothing that this site was asked in this run and in time.
        """
        order = self._site(site).orders.get(reply_to)
        if order is None and reply_to not in self._answered:
            raise MessageError(f"expected a reply to an order of {site}'s, got one to none")
        if order is None or order.abandoned:
            raise MessageError("expected one reply before the deadline, got a late or second one")

    def answered(self, site: str, reply_to: str, answer: Answer) -> str:
        """Takes a reply, once.

        Returns:
            The code for the site: empty where it is taken, now or before.
        """
        order = self._site(site).orders.get(reply_to)
        if order is None:
            return "" if reply_to in self._answered else "unknown-order"
        self._end(order, answer)
        if order.abandoned:
            return "late-reply"
        if isinstance(answer, Failure):
            return "invalid-reply"
        self._answered[reply_to] = None
        if len(self._answered) > _MAX_ANSWERED:
            del self._answered[next(iter(self._answered))]
        return ""

    def expire(self, now: float) -> bool:
        """Fails the orders of sites that were waited for in vain; true where there were any."""
        reason = f"the site is away: no session for {self._silence_seconds:g} seconds"
        overdue = [state for state in self._waiting() if state.there_until <= now]
        for state in overdue:
            self._fail_all(state, Failure(reason))
        return bool(overdue)

    def next_expiry(self) -> float:
        """When ``expire`` has something to do next, as things are."""
        return min((state.there_until for state in self._waiting()), default=math.inf)

    def _waiting(self) -> Iterator[_Site]:
        return (state for state in self._sites.values() if state.line is None and state.orders)

    def _is_there(self, site: str, now: float) -> bool:
        state = self._site(site)
        return state.line is not None or state.there_until > now

    def _site(self, site: str) -> _Site:
        return self._sites.setdefault(site, _Site())

    def _fail_all(self, state: _Site, failure: Failure) -> None:
        for order in list(state.orders.values()):
            self._end(order, failure)

    def _end(self, order: Order, answer: Answer) -> None:
        del self._site(order.site).orders[order.message_id]
        order.end(answer)


def _set_taken(order: Order) -> None:
    order.progress = Progress.TAKEN
    order.envelope = None
