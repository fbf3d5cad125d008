"""The one thread that trains: an order at a time, each answered, whatever happens."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Final, TypeAlias

import torch
from flwr.app import Context, Message

from client.flower import context_of, to_message, to_refusal, to_reply
from core.errors import MessageError, RoundFailedError
from core.wire.transfer import Envelope

logger = logging.getLogger(__name__)

IDLE_SECONDS: Final = 120.0
"""After so long without an order, a run is taken to be over, and the model's memory is freed."""

App: TypeAlias = Callable[[Message, Context], Message]
Finished: TypeAlias = Callable[[str, Envelope], None]


class Worker:
    """Calls a ClientApp on a thread of its own.

    Guarantees:
        ``finished`` is called once for each order, with its answer. An order whose time had passed
        before its turn is refused, and nothing is debited for it. Nothing of an exception leaves
        but that there was one.

    Args:
        app: The site's app.
        site: Its name, for refusals.
        finished: Told from the worker's thread: an order's id, and the answer.
        threads: Threads inside tensor operations; 0 leaves it to torch.
        release: Frees the app's memory; called on the worker's thread, between runs.
        idle_seconds: When.
    """

    def __init__(
        self,
        app: App,
        site: str,
        finished: Finished,
        *,
        threads: int = 0,
        release: Callable[[], None] = lambda: None,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._app = app
        self._site = site
        self._finished = finished
        self._threads = threads
        self._release = release
        self._idle_seconds = idle_seconds
        self._orders: queue.SimpleQueue[tuple[Envelope, float] | None] = queue.SimpleQueue()
        # A daemon: a round that was dropped must not keep the process.
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    def submit(self, order: Envelope) -> None:
        """Puts an order in the queue."""
        self._orders.put((order, time.monotonic() + order.ttl_seconds))

    def close(self, timeout_seconds: float) -> bool:
        """Ends the thread after what it works on; whether it ended in time."""
        self._orders.put(None)
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)  # counts for the thread that calls it
        while (item := self._next()) is not None:
            order, deadline = item
            self._finished(order.message_id, self._answer(order, deadline))
            del item, order  # its weights, while the thread waits

    def _next(self) -> tuple[Envelope, float] | None:
        try:
            return self._orders.get(timeout=self._idle_seconds)
        except queue.Empty:
            self._release()
            return self._orders.get()

    def _answer(self, order: Envelope, deadline: float) -> Envelope:
        if time.monotonic() > deadline:
            late = MessageError("expected an order in its time, got one whose turn came too late")
            return to_refusal(order, late, self._site)
        try:
            reply = self._app(to_message(order), context_of(order))
            return to_reply(order, reply.content)
        except Exception:
            logger.exception("order %s failed", order.message_id)
            return to_refusal(order, RoundFailedError("the round failed at the site"), self._site)
