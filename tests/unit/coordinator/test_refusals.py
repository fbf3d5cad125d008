"""What a peer is told of an error, and how much of it the log keeps."""

import logging

import grpc
import pytest

from coordinator.service.refusals import refuse
from coordinator.service.throttle import Throttle
from core.errors import IdentityError, TooManyError


class AbortedError(Exception):
    """What gRPC's ``abort`` raises."""


class Context:
    """A call of one peer."""

    def peer(self) -> str:
        return "ipv4:192.0.2.7:50000"

    def abort(self, status: grpc.StatusCode, details: str) -> None:
        raise AbortedError(status, details)


def test_a_peer_learns_the_name_of_an_error_and_the_log_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(AbortedError) as raised:
        refuse(Context(), IdentityError("expected north, got south"), "a session")  # type: ignore[arg-type]
    assert raised.value.args == (grpc.StatusCode.UNAUTHENTICATED, "identity")
    assert caplog.messages == [
        "refused a session to ipv4:192.0.2.7:50000: identity: expected north, got south"
    ]


def test_nobody_fills_the_log_by_being_refused(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Throttle(per_second=1.0, burst=3.0, clock=lambda: 0.0)
    monkeypatch.setattr("coordinator.service.refusals._LINES", lines)
    with caplog.at_level(logging.DEBUG):
        for _ in range(50):
            with pytest.raises(AbortedError):
                refuse(Context(), TooManyError("expected fewer"), "JoinRequest")  # type: ignore[arg-type]
    assert len(caplog.messages) == 3
