"""A headless Chromium, driven over its DevTools pipe: no driver, no port, no package.

Source: the Chrome DevTools Protocol, with ``--remote-debugging-pipe``: file descriptors 3 and 4,
one JSON message after the other, each ended by a zero byte.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")
_SECONDS: Final = 60.0
_FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    """One page of a browser of its own."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        reads, writes = os.pipe(), os.pipe()
        # Above 9, so that making them 3 and 4 does not tread on one of them.
        inward = fcntl.fcntl(reads[0], fcntl.F_DUPFD, 10)
        outward = fcntl.fcntl(writes[1], fcntl.F_DUPFD, 10)
        command = (
            f"import os, sys; os.dup2({inward}, 3); os.dup2({outward}, 4); "
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        arguments = [*_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", command, CHROMIUM, *arguments],
            pass_fds=(inward, outward),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for descriptor in (inward, outward, reads[0], writes[1]):
            os.close(descriptor)
        self._to, self._from = reads[1], writes[0]
        self._pending = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._to)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Does one command of the protocol; what happens meanwhile goes to ``events``."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        end = time.monotonic() + _SECONDS
        while True:
            answer = self._next(end)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def open(self, address: str, *, width: int, scheme: str = "light", media: str = "") -> None:
        """Shows a page at a width, in light or dark, on a screen or on paper."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=False,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.events.clear()
        self.call("Page.navigate", url=address)
        end = time.monotonic() + _SECONDS
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next(end))

    def evaluate(self, script: str) -> Any:
        """The value of an expression of JavaScript; the page's own policy does not bind it."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def requests(self) -> list[str]:
        """What the page asked for since it was opened."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """What the browser logged since the page was opened."""
        return [
            event["params"]["entry"]["text"]
            for event in self.events
            if event.get("method") == "Log.entryAdded"
        ]

    def picture(self) -> bytes:
        """The whole page as PNG."""
        result = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(result["data"])

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._pending:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._from], [], [], left)[0]:
                raise TimeoutError("the browser does not answer")
            piece = os.read(self._from, 1 << 16)
            if not piece:
                raise RuntimeError("the browser is gone")
            self._pending += piece
        message, self._pending = self._pending.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found
