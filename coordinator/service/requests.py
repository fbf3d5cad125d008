"""The request of a call, read as a stream is: gRPC would wait for it for ever, on a thread."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import grpc

from core.errors import MessageError, TooManyError

# A request is small: whoever has sent none by then has none.
REQUEST_SECONDS: Final = 5.0
MAX_WAITING_PER_CALLER: Final = 4


class Requests:
    """Waits for requests, but not for long and not for many of one caller.

    Guarantees:
        A caller who begins calls and says nothing holds at most four threads, each for
        ``seconds`` and until the next look.

    Args:
        seconds: How long a request may take to come.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        seconds: float = REQUEST_SECONDS,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[grpc.ServicerContext, tuple[str, float]] = {}

    def read(self, caller: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """The one request of a call.

        Raises:
            TooManyError: Too many calls of this caller wait for theirs.
            MessageError: There is none.
            grpc.RpcError: The call has ended, or was cut.
        """
        self._enter(caller, context)
        try:
            data = next(requests, None)
        finally:
            with self._lock:
                del self._waiting[context]
        if data is None:
            raise MessageError("expected a request, got the end of the call")
        return data

    def cut_overdue(self) -> None:
        """Ends the calls whose request does not come; to be called now and then."""
        overdue = self._clock() - self._seconds
        with self._lock:
            for context, (_, since) in self._waiting.items():
                if since <= overdue:
                    context.cancel()

    def _enter(self, caller: str, context: grpc.ServicerContext) -> None:
        with self._lock:
            same = sum(caller == other for other, _ in self._waiting.values())
            if same >= MAX_WAITING_PER_CALLER:
                raise TooManyError(
                    f"expected at most {MAX_WAITING_PER_CALLER} calls of {caller} without their "
                    "request at a time, got one more"
                )
            self._waiting[context] = caller, self._clock()
