"""Sites on worker threads of this process: the grid of a simulation.

Messages are handed over as they are. A node exists as its context only, made when it is first
called, so a thousand nodes cost a thousand small records.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Final, Self

import torch
from flwr.app import Context, Message, RecordDict

from coordinator.flower import (
    CLIENT_RAISED,
    NODE_UNAVAILABLE,
    error_reply,
    instruction,
)
from coordinator.grids.of_run import GridOfRun

logger = logging.getLogger(__name__)

NodeConfig = Mapping[str, str | int | float | bool]


class InProcessGrid(GridOfRun):
    """Calls a ``ClientApp`` on worker threads.

    The result does not depend on the number of workers: a node's reply is a function of its
    message and its context, and replies come back in the order of the messages.

    Args:
        client_app: The app that every node runs.
        nodes: Each node's ``node_config``, by node id.
        workers: Nodes that work at the same time.
        threads_per_worker: Threads inside one node's tensor operations.
        run_id: Flower's number of the run.
    """

    # Nothing crosses a wire: the bytes that a client returned are the bytes that arrive.
    passes_arrays_by_reference: Final = True

    def __init__(
        self,
        client_app: Callable[[Message, Context], Message],
        nodes: Mapping[int, NodeConfig],
        *,
        workers: int,
        threads_per_worker: int = 1,
        run_id: int = 0,
    ) -> None:
        self._client_app = client_app
        self._nodes = dict(nodes)
        super().__init__(run_id)
        self._contexts: dict[int, Context] = {}
        self._pending: dict[str, tuple[Message, Future[Message]]] = {}
        self._busy: set[int] = set()
        self._lock = threading.Lock()
        self._numbers: Iterator[int] = itertools.count(1)
        self._workers = ThreadPoolExecutor(
            max_workers=workers,
            thread_name_prefix="site",
            # Per thread: what one worker computes does not depend on how many there are.
            initializer=torch.set_num_threads,
            initargs=(threads_per_worker,),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drops what has not begun and waits for what has: a thread cannot be stopped."""
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that can take a message; one still at work on a late task is away."""
        with self._lock:
            return [node for node in self._nodes if node not in self._busy]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hands messages to the workers; a node that is away or unknown gets an error reply."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there, each once, in the order of ``message_ids``."""
        return [
            self._collect(message_id)
            for message_id in message_ids
            if message_id in self._pending and self._pending[message_id][1].done()
        ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Sends at once, and gives the replies that come within ``timeout`` seconds.

        A reply is given as soon as it and those before it are there, so that the coordinator
        checks it while other nodes still work. What has not begun at the deadline never does;
        what comes later is thrown away.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._replies(list(self.push_messages(messages)), deadline)

    def _replies(self, ids: Sequence[str], deadline: float | None) -> Iterator[Message]:
        try:
            for number, message_id in enumerate(ids):
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                future = self._pending[message_id][1]
                if not future.done():
                    wait([future], timeout=left)
                if deadline is not None and time.monotonic() >= deadline:
                    # All at once: whoever reads may take its time, and nothing may begin then.
                    last = list(self.pull_messages(ids[number:]))
                    self._abandon(ids)
                    yield from last
                    return
                yield from self.pull_messages([message_id])
        finally:
            self._abandon(ids)

    def _push(self, message: Message) -> str:
        message_id = str(next(self._numbers))
        node = message.metadata.dst_node_id
        sent = instruction(
            message.content,
            run_id=message.metadata.run_id,
            message_id=message_id,
            dst_node_id=node,
            message_type=message.metadata.message_type,
            group_id=message.metadata.group_id,
            ttl=message.metadata.ttl,
        )
        with self._lock:
            free = node in self._nodes and node not in self._busy
            if free:
                self._busy.add(node)
        if free:
            self._pending[message_id] = (sent, self._workers.submit(self._call, sent))
        else:
            refused: Future[Message] = Future()
            refused.set_result(error_reply(sent, NODE_UNAVAILABLE, "unknown or still at work"))
            self._pending[message_id] = (sent, refused)
        return message_id

    def _call(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        try:
            reply = self._client_app(message, self._context(node))
            if not isinstance(reply, Message) or reply.has_content() == reply.has_error():
                raise TypeError("a client app returns one message with content or an error")
            return reply
        finally:
            # Before the reply is seen: the next round finds the node free.
            self._release(node)

    def _context(self, node: int) -> Context:
        if node not in self._contexts:
            self._contexts[node] = Context(
                run_id=self._run.run_id,
                node_id=node,
                node_config=dict(self._nodes[node]),
                state=RecordDict(),
                run_config={},
            )
        return self._contexts[node]

    def _collect(self, message_id: str) -> Message:
        """The reply, with metadata of our own: a client does not say who it is."""
        message, future = self._pending.pop(message_id)
        error = future.exception()
        if error is not None:
            logger.debug("node %d raised", message.metadata.dst_node_id, exc_info=error)
            return error_reply(message, CLIENT_RAISED, type(error).__name__)
        reply = future.result()
        if reply.has_error():
            return Message(reply.error, reply_to=message)
        return Message(reply.content, reply_to=message)

    def _abandon(self, message_ids: Sequence[str]) -> None:
        for message_id in message_ids:
            entry = self._pending.pop(message_id, None)
            if entry is not None and entry[1].cancel():
                self._release(entry[0].metadata.dst_node_id)

    def _release(self, node: int) -> None:
        with self._lock:
            self._busy.discard(node)
