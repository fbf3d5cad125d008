"""Sites behind sessions that they opened: the grid of a deployment.

Flower's side of it is here and is that of any grid: messages in, replies out, in order. The other
side, which hears from the sites, is its ``Switchboard``.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from flwr.app import Message, RecordDict

from coordinator.flower import (
    NODE_UNAVAILABLE,
    REPLY_REJECTED,
    error_reply,
    instruction,
)
from coordinator.grids.dispatch import Answer, Failure
from coordinator.grids.envelopes import content_of, envelope_of
from coordinator.grids.link import Traffic
from coordinator.grids.of_run import GridOfRun
from coordinator.grids.switchboard import Switchboard
from core.array_codec import Manifest
from core.coordinator_config import LivenessSection
from core.errors import RunError


class RemoteGrid(Switchboard, GridOfRun):
    """Carries orders to sites and their replies back, whatever happens to the sessions.

    Guarantees:
        Each message that is pushed has exactly one reply: the site's, taken once however often
        it is sent, or an error that says why there is none. The bytes of an order are held once
        for all nodes, and only until the last site has it.

    Args:
        liveness: When a site counts as away.
        traffic: Counts frames and bytes.
        clock: Monotonic seconds.
    """

    passes_arrays_by_reference: Final = False

    def __init__(
        self,
        liveness: LivenessSection,
        *,
        traffic: Traffic | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        Switchboard.__init__(self, liveness, traffic=traffic, clock=clock)
        GridOfRun.__init__(self)
        self._headers: dict[str, Message] = {}
        self._interrupted = ""

    # The run.

    def begin_run(self, nodes: Mapping[int, str], reply_manifest: Manifest) -> None:
        """Sets whom the run may ask, by node id, and what the arrays of their replies must be.

        Forgets an interruption before it.
        """
        with self._changed:
            self._dispatch.begin_run(nodes)
            self._manifest = reply_manifest
            self._headers = {}
            self._interrupted = ""

    def end_run(self) -> None:
        """Abandons what is unanswered; replies that still come are refused by name."""
        with self._changed:
            self._dispatch.end_run()
            self._manifest = {}
            self._headers = {}

    def interrupt(self, reason: str) -> None:
        """Ends the run's waiting, now and until the next ``begin_run``, with a RunError."""
        with self._changed:
            self._interrupted = reason or "no reason given"
            self._changed.notify_all()

    # Flower's side.

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that can take a message: with a session, or without one for a moment only.

        One that is still at work on an order that nobody waits for is not among them.

        Raises:
            RunError: The run was interrupted.
        """
        with self._lock:
            self._check_not_interrupted()
            return self._dispatch.free_nodes(self._clock())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages; one to a node that cannot take it gets an error reply.

        Raises:
            RunError: The run was interrupted, or a message holds what does not travel.
        """
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there, each once, in the order of ``message_ids``."""
        with self._lock:
            self._dispatch.expire(self._clock())
            answers = [(key, self._dispatch.pop(key)) for key in message_ids]
            return [self._reply(key, answer) for key, answer in answers if answer is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Sends at once, and gives the replies that come within ``timeout`` seconds.

        A reply is given as soon as it and those before it are there. What comes after the
        deadline is refused by name.

        Raises:
            RunError: The run was interrupted.
        """
        deadline = None if timeout is None else self._clock() + timeout
        return self._replies(list(self.push_messages(messages)), deadline)

    def _replies(self, ids: Sequence[str], deadline: float | None) -> Iterator[Message]:
        try:
            for number, message_id in enumerate(ids):
                if not self._wait(message_id, deadline):
                    # All at once: whoever reads may take its time, and nothing counts then.
                    last = list(self.pull_messages(ids[number:]))
                    self._abandon(ids)
                    yield from last
                    return
                yield from self.pull_messages([message_id])
        finally:
            self._abandon(ids)

    def _push(self, message: Message) -> str:
        message_id, metadata = secrets.token_hex(16), message.metadata
        envelope = envelope_of(message, message_id)
        # Without the content: what is kept for the reply must not keep the arrays.
        header = instruction(
            RecordDict(),
            run_id=metadata.run_id,
            message_id=message_id,
            dst_node_id=metadata.dst_node_id,
            message_type=metadata.message_type,
            group_id=metadata.group_id,
            ttl=metadata.ttl,
        )
        with self._lock:
            self._check_not_interrupted()
            self._headers[message_id] = header
            self._dispatch.push(message_id, metadata.dst_node_id, envelope, self._clock())
        return message_id

    def _wait(self, message_id: str, deadline: float | None) -> bool:
        """Waits for an answer; false where the deadline came first."""
        with self._changed:
            while True:
                self._check_not_interrupted()
                now = self._clock()
                self._dispatch.expire(now)
                order = self._dispatch.order(message_id)
                if order is None or order.answer is not None:
                    return deadline is None or now < deadline
                if deadline is not None and now >= deadline:
                    return False
                until = self._dispatch.next_expiry()
                if deadline is not None:
                    until = min(until, deadline)
                self._changed.wait(min(max(until - now, 0.0), threading.TIMEOUT_MAX))

    def _reply(self, message_id: str, answer: Answer) -> Message:
        """The reply, with metadata of our own: a site does not say who it is."""
        header = self._headers.pop(message_id)
        if isinstance(answer, Failure):
            code = REPLY_REJECTED if answer.invalid else NODE_UNAVAILABLE
            return error_reply(header, code, answer.reason)
        return Message(content_of(answer), reply_to=header)

    def _abandon(self, message_ids: Sequence[str]) -> None:
        with self._lock:
            self._dispatch.abandon(message_ids)
            for message_id in message_ids:
                self._headers.pop(message_id, None)

    def _check_not_interrupted(self) -> None:
        if self._interrupted:
            raise RunError(f"the run was interrupted: {self._interrupted}")
