from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from audit.attestation.auditor import Auditor, check_signer
from core.errors import IdentityError, MessageError, SignerError
from core.messages import decode, encode
from privacy.signing import SiteKey
from tests.support.reports import auditor_of

KEY = SiteKey.generate()
AUDITOR = auditor_of(KEY)
BEGIN, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2028, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize("at", [BEGIN, BEGIN + timedelta(days=100), END])
def test_a_trusted_key_signs_within_its_time(at: datetime) -> None:
    check_signer(AUDITOR, {KEY.public_hex}, at)


@pytest.mark.parametrize("trusted", [set(), {SiteKey.generate().public_hex}])
def test_an_unknown_key_is_named(trusted: set[str]) -> None:
    with pytest.raises(SignerError, match="unknown key"):
        check_signer(AUDITOR, trusted, BEGIN)


def test_a_key_is_named_that_is_not_yet_or_no_longer_valid() -> None:
    with pytest.raises(SignerError, match="not yet valid"):
        check_signer(AUDITOR, {KEY.public_hex}, BEGIN - SECOND)
    with pytest.raises(SignerError, match="expired"):
        check_signer(AUDITOR, {KEY.public_hex}, END + SECOND)


def test_a_time_without_its_zone_is_refused() -> None:
    with pytest.raises(IdentityError, match="zone"):
        check_signer(AUDITOR, {KEY.public_hex}, BEGIN.replace(tzinfo=None))


def test_a_time_of_another_zone_is_the_same_time() -> None:
    from zoneinfo import ZoneInfo

    check_signer(AUDITOR, {KEY.public_hex}, BEGIN.astimezone(ZoneInfo("Asia/Tokyo")))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "two\nlines"},
        {"role": "x" * 201},
        {"public_key": "AB" * 32},
        {"not_before": "2028-01-01T00:00:00Z"},
        {"not_before": "2026-02-30T00:00:00Z"},
        {"not_after": "2026-01-01 00:00:00"},
        {"more": 1},
    ],
)
def test_what_is_no_auditor_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Auditor(**(AUDITOR.model_dump() | changes))


def test_it_survives_its_wire_form() -> None:
    assert decode(Auditor, encode(AUDITOR)) == AUDITOR
    with pytest.raises(MessageError):
        decode(Auditor, b"{}")
