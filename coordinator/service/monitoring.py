"""What the service counts, and the loopback port where a monitor reads it.

``/healthz`` answers 200 while the service works and 503 once it does not; ``/metrics`` is in the
text format of Prometheus. Nothing here is computed from records.
"""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from core.errors import ServiceError
from core.run_record import RoundResult

logger = logging.getLogger(__name__)

_HOST: Final = "127.0.0.1"
_SECONDS: Final = (0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 7200)

Health = Callable[[], Mapping[str, Any]]


class Metrics:
    """The figures, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.epsilons: Mapping[str, float] = {}
        self._rounds = Counter("cloister_rounds", "Rounds applied", registry=registry)
        self._replies = Counter(
            "cloister_replies", "Replies by what became of them", ["outcome"], registry=registry
        )
        self._refusals = Counter(
            "cloister_refusals",
            "Refusals and dropped replies by reason",
            ["site", "reason"],
            registry=registry,
        )
        self._seconds = Histogram(
            "cloister_round_seconds", "Seconds a round", buckets=_SECONDS, registry=registry
        )
        self._epsilon = Gauge(
            "cloister_site_epsilon",
            "Epsilon over a site's whole life, as its last reply said",
            ["site"],
            registry=registry,
        )
        self._round = Gauge("cloister_run_round", "Rounds of the present run", registry=registry)
        self._bytes = Counter(
            "cloister_bytes",
            "Bytes of frames by site and direction",
            ["site", "direction"],
            registry=registry,
        )
        self._frames = Counter(
            "cloister_frames",
            "Frames by site and direction",
            ["site", "direction"],
            registry=registry,
        )
        self._connected = Gauge(
            "cloister_connected_sites", "Sites with an open session", registry=registry
        )
        self._runs = Gauge("cloister_runs", "Runs by state", ["state"], registry=registry)
        self._roster = Gauge(
            "cloister_roster_seconds_left", "Until the roster expires", registry=registry
        )

    def round_finished(self, result: RoundResult) -> None:
        """Counts a round; round 0, the model before training, is none."""
        self._round.set(result.server_round)
        if result.server_round == 0:
            return
        self._rounds.inc()
        self._seconds.observe(result.seconds)
        self._replies.labels("used").inc(len(result.used))
        self._replies.labels("refused").inc(len(result.refusals))
        self._replies.labels("dropped").inc(len(result.rejected))
        for refusal in result.refusals:
            self._refusals.labels(refusal.site, refusal.code).inc()
        for dropped in result.rejected:
            self._refusals.labels(dropped.site, dropped.code).inc()
        for site, spent in result.spent.items():
            if spent.epsilon is not None:
                self.set_epsilon(site, spent.epsilon)

    def set_epsilon(self, site: str, epsilon: float) -> None:
        """What a site spent over its whole life."""
        self._epsilon.labels(site).set(epsilon)
        self.epsilons = {**self.epsilons, site: epsilon}

    def sent(self, site: str, num_bytes: int) -> None:
        """Counts a frame to a site."""
        self._bytes.labels(site, "sent").inc(num_bytes)
        self._frames.labels(site, "sent").inc()

    def received(self, site: str, num_bytes: int) -> None:
        """Counts a frame from a site."""
        self._bytes.labels(site, "received").inc(num_bytes)
        self._frames.labels(site, "received").inc()

    def observe(
        self, *, connected: int, runs: Mapping[str, int], roster_seconds_left: float
    ) -> None:
        """Sets what is looked up when a monitor asks."""
        self._connected.set(connected)
        self._roster.set(roster_seconds_left)
        for state, count in runs.items():
            self._runs.labels(state).set(count)

    def text(self) -> bytes:
        """All figures in the text format."""
        return generate_latest(self.registry)


class MonitoringServer:
    """The loopback port."""

    def __init__(self, port: int, health: Health, metrics: Callable[[], bytes]) -> None:
        """Listens on ``port``; 0 for any free one.

        Args:
            port: On 127.0.0.1 only.
            health: What ``/healthz`` says; its ``healthy`` decides on the status.
            metrics: What ``/metrics`` says.

        Raises:
            ServiceError: The port is taken.
        """
        try:
            self._server = ThreadingHTTPServer((_HOST, port), _handler(health, metrics))
        except OSError as error:
            raise ServiceError(
                f"cannot listen on {_HOST}:{port} for monitoring: {error.strerror}",
                hint="set listen.metrics_port to a free port, or 0 for any",
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="monitoring", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port."""
        port: int = self._server.server_address[1]
        return port

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(health: Health, metrics: Callable[[], bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10
        server_version = "cloister"
        sys_version = ""

        def do_GET(self) -> None:
            if self.path == "/healthz":
                state = health()
                status = HTTPStatus.OK if state["healthy"] else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(status, "application/json", json.dumps(state).encode() + b"\n")
            elif self.path == "/metrics":
                self._answer(HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, metrics())
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"/healthz or /metrics\n")

        def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            logger.debug("monitoring: %s", format % args)

    return Handler
