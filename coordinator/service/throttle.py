"""How often strangers may knock: a bucket of tokens for each address, and one for all."""

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

_MAX_ADDRESSES: Final = 1024


class Throttle:
    """Lets so many calls through, and no more.

    Guarantees:
        From one address come at most ``burst`` calls and then ``per_second``; from all together
        at most ten times that. Memory is bounded whatever addresses there are: where there are too
        many to remember, the one that called longest ago is forgotten.
    """

    def __init__(
        self,
        *,
        per_second: float = 1.0,
        burst: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_second, self._burst = per_second, burst
        self._clock = clock
        self._lock = threading.Lock()
        # Tokens left, and when that was.
        self._all = (10 * burst, clock())
        self._by_address: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admits(self, address: str) -> bool:
        """Takes a token of ``address`` and one of all, where there are both."""
        with self._lock:
            now = self._clock()
            own = self._by_address.pop(address, (self._burst, now))
            own_left = _left(own, now, self._per_second, self._burst)
            all_left = _left(self._all, now, 10 * self._per_second, 10 * self._burst)
            admitted = own_left >= 1 and all_left >= 1
            self._by_address[address] = (own_left - admitted, now)
            self._all = (all_left - admitted, now)
            if len(self._by_address) > _MAX_ADDRESSES:
                self._by_address.popitem(last=False)
            return admitted


def caller_address(peer: str) -> str:
    """The address in what gRPC calls a peer, such as ``ipv4:192.0.2.7:50000``, without its port.

    Of IPv6, the network of 64 bits: whoever has one address there has all of them.
    """
    kind, _, address = unquote(peer.rpartition(":")[0]).partition(":")
    if kind != "ipv6":
        return f"{kind}:{address}"
    host = ipaddress.IPv6Address(address.strip("[]").partition("%")[0])
    if host.ipv4_mapped is not None:
        return f"ipv4:{host.ipv4_mapped}"
    return f"ipv6:{ipaddress.IPv6Network((host, 64), strict=False)}"


def _left(bucket: tuple[float, float], now: float, per_second: float, burst: float) -> float:
    tokens, then = bucket
    return min(burst, tokens + (now - then) * per_second)
