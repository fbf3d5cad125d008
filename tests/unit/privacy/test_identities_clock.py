from datetime import UTC, datetime, timedelta, timezone

import pytest

from core.errors import IdentityError
from privacy.identities.clock import (
    CLOCK_ALLOWANCE,
    check_fresh,
    read_timestamp,
    utc_now,
    write_timestamp,
)

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)


def test_a_timestamp_comes_back() -> None:
    assert write_timestamp(NOW) == "2026-06-01T12:00:00Z"
    assert read_timestamp("2026-06-01T12:00:00Z") == NOW


def test_now_is_a_timestamp() -> None:
    now = utc_now()
    assert read_timestamp(write_timestamp(now)) == now


def test_another_zone_is_converted() -> None:
    assert write_timestamp(NOW.astimezone(timezone(timedelta(hours=5)))) == "2026-06-01T12:00:00Z"


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(IdentityError, match="expected a time with its zone, got 2026-06-01T12"):
        write_timestamp(datetime(2026, 6, 1, 12))


@pytest.mark.parametrize("text", ["2026-02-30T12:00:00Z", "2026-13-01T12:00:00Z", "junk", ""])
def test_a_time_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(IdentityError, match="expected a time like 2026-01-31T12:00:00Z, got"):
        read_timestamp(text)


@pytest.mark.parametrize("apart", [-CLOCK_ALLOWANCE, timedelta(0), CLOCK_ALLOWANCE])
def test_a_request_of_the_last_minutes_is_fresh(apart: timedelta) -> None:
    check_fresh("a request", write_timestamp(NOW + apart), NOW)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_request_from_before_or_from_the_future_is_refused(sign: int) -> None:
    then = NOW + sign * (CLOCK_ALLOWANCE + timedelta(seconds=1))
    with pytest.raises(
        IdentityError, match=r"expected a request of the last 5 minutes, got one of .*\nhint: set"
    ):
        check_fresh("a request", write_timestamp(then), NOW)
