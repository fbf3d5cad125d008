"""What a monitor reads on the loopback port."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.service.monitoring import Metrics, MonitoringServer
from core.errors import ServiceError
from core.messages import SpentBudget
from core.run_record import RejectedReply, RoundResult, SiteRefusal

RESULT = RoundResult(
    server_round=3,
    attempts=1,
    used=["north", "west"],
    spent={
        "north": SpentBudget(epsilon=1.5, delta=1e-5, private=True),
        "west": SpentBudget(epsilon=None, delta=1e-5, private=False),
    },
    refusals=[SiteRefusal("south", "budget-exceeded", "no")],
    rejected=[RejectedReply("east", "no-reply", "late")],
    weights_digest="0" * 64,
    seconds=2.5,
)


@pytest.fixture
def state() -> dict[str, Any]:
    return {"healthy": True, "run": ""}


@pytest.fixture
def server(state: dict[str, Any]) -> Iterator[MonitoringServer]:
    server = MonitoringServer(0, lambda: state, lambda: b"figures\n")
    yield server
    server.close()


def get(server: MonitoringServer, path: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def test_health_is_a_status_and_says_why(server: MonitoringServer, state: dict[str, Any]) -> None:
    status, kind, body = get(server, "/healthz")
    assert (status, kind, json.loads(body)) == (200, "application/json", state)
    state |= {"healthy": False, "trouble": "the disk is full"}
    status, _, body = get(server, "/healthz")
    assert (status, json.loads(body)["trouble"]) == (503, "the disk is full")


def test_metrics_are_text(server: MonitoringServer) -> None:
    status, kind, body = get(server, "/metrics")
    assert (status, body) == (200, b"figures\n")
    assert kind.startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize("path", ["/", "/metrics/../etc", "/healthz?x=1"])
def test_there_is_nothing_else(server: MonitoringServer, path: str) -> None:
    assert get(server, path)[0] == 404


def test_nothing_is_changed_here(server: MonitoringServer) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/healthz", method="POST")
    with pytest.raises(urllib.error.HTTPError) as info:
        urllib.request.urlopen(request, timeout=10)  # noqa: S310 - this machine's
    with info.value:
        assert info.value.code == 501


def test_a_port_that_is_taken_is_named(server: MonitoringServer) -> None:
    with pytest.raises(ServiceError, match=f"127.0.0.1:{server.port} for monitoring: .*in use"):
        MonitoringServer(server.port, dict, bytes)


def test_a_round_is_counted() -> None:
    metrics = Metrics()
    metrics.round_finished(RESULT)
    text = metrics.text().decode()
    for line in (
        "cloister_rounds_total 1.0",
        'cloister_replies_total{outcome="used"} 2.0',
        'cloister_replies_total{outcome="refused"} 1.0',
        'cloister_replies_total{outcome="dropped"} 1.0',
        'cloister_refusals_total{reason="budget-exceeded",site="south"} 1.0',
        'cloister_refusals_total{reason="no-reply",site="east"} 1.0',
        'cloister_round_seconds_bucket{le="3.0"} 1.0',
        'cloister_round_seconds_bucket{le="1.0"} 0.0',
        'cloister_site_epsilon{site="north"} 1.5',
        "cloister_run_round 3.0",
    ):
        assert line in text.splitlines(), line
    assert 'site="west"' not in text
    assert metrics.epsilons == {"north": 1.5}


def test_the_model_before_training_is_no_round() -> None:
    metrics = Metrics()
    metrics.round_finished(RoundResult(0, 0, (), {}, (), (), "0" * 64, 0.0))
    assert "cloister_rounds_total 0.0" in metrics.text().decode()


def test_bytes_frames_and_what_is_looked_up() -> None:
    metrics = Metrics()
    metrics.sent("north", 100)
    metrics.sent("north", 50)
    metrics.received("north", 7)
    metrics.observe(connected=2, runs={"queued": 3, "failed": 0}, roster_seconds_left=60.0)
    text = metrics.text().decode()
    for line in (
        'cloister_bytes_total{direction="sent",site="north"} 150.0',
        'cloister_frames_total{direction="sent",site="north"} 2.0',
        'cloister_bytes_total{direction="received",site="north"} 7.0',
        "cloister_connected_sites 2.0",
        'cloister_runs{state="queued"} 3.0',
        "cloister_roster_seconds_left 60.0",
    ):
        assert line in text.splitlines(), line
