from datetime import timedelta
from typing import Any

import pytest

from core.errors import IdentityError, RosterRollbackError
from core.messages import decode, encode
from core.wire.documents import Roster, RosterMember, RosterOperator, SignedRoster
from privacy.identities.clock import write_timestamp
from privacy.identities.names import role_tls_name, site_tls_name
from privacy.identities.roster import check_roster, sign_roster
from privacy.signing import SiteKey, sign_document
from tests.support.certificates import NOW

ADMIN = SiteKey.generate()


def member(name: str, **changes: Any) -> RosterMember:
    values = {
        "name": name,
        "node_key": SiteKey.generate().public_hex,
        "tls_name": site_tls_name("clinic", name),
        "num_examples": 4000,
    }
    return RosterMember(**(values | changes))


NORTH, SOUTH = member("north"), member("south")
ANA = RosterOperator(
    name="ana", role="operator", tls_name=role_tls_name("clinic", "ana", "operator")
)


def roster(**changes: Any) -> Roster:
    values = {
        "federation": "clinic",
        "epoch": 3,
        "issued": write_timestamp(NOW),
        "expires": write_timestamp(NOW + timedelta(days=90)),
        "members": (NORTH, SOUTH),
        "operators": (ANA,),
    }
    return Roster(**(values | changes))


def check(signed: SignedRoster, **changes: Any) -> Roster:
    values = {"admin_key": ADMIN.public_hex, "federation": "clinic", "now": NOW, "pinned": None}
    return check_roster(signed, **(values | changes))


def test_a_signed_roster_is_taken_also_after_a_journey() -> None:
    signed = sign_roster(roster(), ADMIN)
    assert check(signed) == roster()
    assert check(decode(SignedRoster, encode(signed))) == roster()


def test_a_roster_that_another_key_signed_is_refused() -> None:
    signed = sign_roster(roster(), SiteKey.generate())
    with pytest.raises(
        IdentityError, match=r"expected a SignedRoster signed by the key .*, got an"
    ):
        check(signed)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 4},
        {"expires": write_timestamp(NOW + timedelta(days=900))},
        {"members": (NORTH,)},
        {"members": (NORTH, SOUTH.model_copy(update={"status": "revoked"}))},
        {"members": (NORTH, SOUTH.model_copy(update={"num_examples": 9_000_000}))},
        {"operators": (ANA, ANA.model_copy(update={"name": "eve", "tls_name": "eve.example"}))},
    ],
)
def test_every_change_breaks_the_signature(change: dict[str, Any]) -> None:
    signed = sign_roster(roster(), ADMIN).model_copy(update={"roster": roster(**change)})
    with pytest.raises(IdentityError, match="got another signature"):
        check(signed)


def test_a_signature_for_another_purpose_is_no_roster_s() -> None:
    signed = sign_roster(roster(), ADMIN)
    other = signed.model_copy(update={"signature": sign_document(ADMIN, "join", signed)})
    with pytest.raises(IdentityError, match="got another signature"):
        check(other)


def test_the_roster_of_another_federation_is_refused() -> None:
    signed = sign_roster(roster(federation="other"), ADMIN)
    with pytest.raises(IdentityError, match="expected the roster of 'clinic', got that of 'other'"):
        check(signed)


def test_an_expired_roster_is_refused() -> None:
    signed = sign_roster(roster(), ADMIN)
    check(signed, now=NOW + timedelta(days=90, seconds=-1))
    with pytest.raises(
        IdentityError, match=r"got one that expired at 2026-08-30T12.*\nhint: check t"
    ):
        check(signed, now=NOW + timedelta(days=90))


def test_a_roster_from_the_future_is_refused() -> None:
    signed = sign_roster(roster(), ADMIN)
    check(signed, now=NOW - timedelta(minutes=5))
    with pytest.raises(
        IdentityError, match=r"expected a roster issued before .*\nhint: set the cl"
    ):
        check(signed, now=NOW - timedelta(minutes=6))


def test_an_older_roster_than_the_pinned_one_is_refused() -> None:
    with pytest.raises(
        RosterRollbackError, match=r"expected a roster of epoch 4 or later, got epoch 3\nhint: some"
    ):
        check(sign_roster(roster(), ADMIN), pinned=sign_roster(roster(epoch=4), ADMIN))


def test_the_same_and_a_newer_roster_than_the_pinned_one_are_taken() -> None:
    pinned = sign_roster(roster(), ADMIN)
    check(pinned, pinned=pinned)
    check(sign_roster(roster(epoch=4, members=(NORTH,)), ADMIN), pinned=pinned)


def test_of_one_epoch_there_is_one_roster() -> None:
    pinned = sign_roster(roster(), ADMIN)
    with pytest.raises(
        IdentityError, match=r"the one roster of epoch 3, got another of the same ep"
    ):
        check(sign_roster(roster(members=(NORTH,)), ADMIN), pinned=pinned)


def test_a_pinned_roster_may_have_expired_since() -> None:
    later = NOW + timedelta(days=100)
    following = roster(
        epoch=4, issued=write_timestamp(later), expires=write_timestamp(later + timedelta(days=1))
    )
    check(sign_roster(following, ADMIN), now=later, pinned=sign_roster(roster(), ADMIN))


def test_a_pin_that_was_changed_on_the_disk_is_refused() -> None:
    pinned = sign_roster(roster(epoch=9), ADMIN).model_copy(update={"roster": roster(epoch=1)})
    with pytest.raises(IdentityError, match="got another signature"):
        check(sign_roster(roster(), ADMIN), pinned=pinned)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"members": (NORTH, member("north"))}, "distinct sites, got 'north' twice"),
        (
            {"members": (NORTH, member("south", node_key=NORTH.node_key))},
            f"distinct node keys, got '{NORTH.node_key}' twice",
        ),
        (
            {"members": (NORTH, member("south", tls_name=NORTH.tls_name))},
            "distinct TLS names, got 'north.site.clinic.cloister.internal' twice",
        ),
        (
            {"operators": (ANA, ANA.model_copy(update={"tls_name": "ana.example"}))},
            "distinct operators, got 'ana' twice",
        ),
        (
            {"operators": (ANA.model_copy(update={"tls_name": NORTH.tls_name}),)},
            "distinct TLS names, got 'north.site.clinic.cloister.internal' twice",
        ),
        (
            {"members": (NORTH, member("south", status="revoked", node_key=NORTH.node_key))},
            "distinct node keys",
        ),
        (
            {"expires": write_timestamp(NOW)},
            "expected a roster that expires after 2026-06-01T12:00:00Z, got 2026-06-01T12:00:00Z",
        ),
        ({"issued": "2026-02-30T12:00:00Z"}, "expected a time like"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_roster_that_contradicts_itself_is_neither_signed_nor_taken(
    change: dict[str, Any], text: str
) -> None:
    bad = roster(**change)
    with pytest.raises(IdentityError, match=text):
        sign_roster(bad, ADMIN)
    unsigned = SignedRoster(roster=bad, signature="0" * 128)
    signed = unsigned.model_copy(update={"signature": sign_document(ADMIN, "roster", unsigned)})
    with pytest.raises(IdentityError, match=text):
        check(signed)
