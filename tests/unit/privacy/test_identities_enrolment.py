import hmac
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from core.errors import IdentityError
from core.messages import decode, encode
from core.wire.documents import CollectRequest, Invitation, JoinRequest, RenewRequest
from privacy.identities.authority import create_authority
from privacy.identities.clock import write_timestamp
from privacy.identities.enrolment import (
    check_collect_request,
    check_join_request,
    check_renew_request,
    check_token,
    join_fingerprint,
    make_collect_request,
    make_join_request,
    make_renew_request,
    new_token,
    token_hash,
)
from privacy.identities.names import site_tls_name
from privacy.identities.tls_keys import TlsKey
from privacy.signing import SiteKey, sign_document
from tests.support.certificates import CLIENT, NOW, Forgery, organisation_root

NODE, TLS = SiteKey.generate(), TlsKey.generate()
OTHER_NODE, OTHER_TLS = SiteKey.generate(), TlsKey.generate()
ROOT_KEY = TlsKey.generate()
ROOT = organisation_root(ROOT_KEY)
TOKEN = new_token()
EXPIRES = write_timestamp(NOW + timedelta(hours=24))


def invitation(**changes: Any) -> Invitation:
    values = {
        "federation": "clinic",
        "site": "north",
        "num_examples": 4000,
        "token": TOKEN,
        "expires": EXPIRES,
        "address": "localhost:7443",
        "enrolment_address": "localhost:7444",
        "server_name": "coordinator.clinic.cloister.internal",
        "ca_pem": create_authority("clinic", NOW).root_pem,
        "admin_key": SiteKey.generate().public_hex,
        "tls_name": site_tls_name("clinic", "north"),
    }
    return Invitation(**(values | changes))


def join(certificate_pem: str = "", **changes: Any) -> JoinRequest:
    if certificate_pem:
        changes |= {"tls_name": None}
    return make_join_request(
        invitation(**changes), NODE, TLS, certificate_pem=certificate_pem, now=NOW
    )


def signed_anew(request: Any, purpose: str, key: SiteKey = NODE, **changes: Any) -> Any:
    """What a liar sends who has a node key: the signature is right, the content is not."""
    changed = request.model_copy(update=changes)
    return changed.model_copy(update={"signature": sign_document(key, purpose, changed)})


def test_a_token_has_128_random_bits() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(bytes.fromhex(token)) == 16 for token in tokens)


def test_a_token_s_hash_is_bound_to_the_site_and_the_federation() -> None:
    hashes = {
        token_hash(TOKEN, "clinic", "north"),
        token_hash(TOKEN, "clinic", "south"),
        token_hash(TOKEN, "other", "north"),
        token_hash(new_token(), "clinic", "north"),
    }
    assert len(hashes) == 4
    assert token_hash(TOKEN, "clinic", "north") == token_hash(TOKEN, "clinic", "north")
    assert all(TOKEN not in item for item in hashes)


def test_the_right_token_is_taken_until_it_ends() -> None:
    stored = token_hash(TOKEN, "clinic", "north")
    check_token(join(), stored_hash=stored, expires=EXPIRES, now=NOW + timedelta(hours=23))
    with pytest.raises(
        IdentityError, match=r"expected a valid token for site 'north', .*\nhint: as"
    ):
        check_token(join(), stored_hash=stored, expires=EXPIRES, now=NOW + timedelta(hours=24))


@pytest.mark.parametrize(
    ("token", "federation", "site"),
    [
        (new_token(), "clinic", "north"),
        (TOKEN, "clinic", "south"),
        (TOKEN, "other", "north"),
    ],
    ids=["another token", "another site", "another federation"],
)
def test_a_wrong_token_or_one_for_another_site_is_refused(
    token: str, federation: str, site: str
) -> None:
    stored = token_hash(token, federation, site)
    with pytest.raises(IdentityError, match="got one that is wrong, used or expired"):
        check_token(join(), stored_hash=stored, expires=EXPIRES, now=NOW)


def test_wrong_and_late_tokens_are_refused_in_the_same_words() -> None:
    """Nobody learns from the answer that a token was right."""
    said = set()
    for token, now in ((TOKEN, NOW + timedelta(days=2)), (new_token(), NOW)):
        stored = token_hash(token, "clinic", "north")
        with pytest.raises(IdentityError) as caught:
            check_token(join(), stored_hash=stored, expires=EXPIRES, now=now)
        said.add(str(caught.value))
    assert len(said) == 1


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    compare = hmac.compare_digest

    def watch(given: bytes, stored: bytes) -> bool:
        compared.append((given.decode(), stored.decode()))
        return compare(given, stored)

    monkeypatch.setattr(hmac, "compare_digest", watch)
    stored = token_hash(TOKEN, "clinic", "north")
    check_token(join(), stored_hash=stored, expires=EXPIRES, now=NOW)
    assert compared == [(stored, stored)]


def test_a_request_to_join_proves_both_keys_also_after_a_journey() -> None:
    request = join()
    facts = check_join_request(decode(JoinRequest, encode(request)), federation="clinic")
    assert facts.public_key_digest == TLS.public_key_digest
    assert facts.tls_name is None
    assert facts.certificate_pem == ""
    assert facts.fingerprint == join_fingerprint(request)


def test_the_fingerprint_is_that_of_the_site_and_its_keys() -> None:
    request = join()
    same = [join(token=new_token()), join(num_examples=5)]
    assert {join_fingerprint(item) for item in same} == {join_fingerprint(request)}
    others = [
        request.model_copy(update={"site": "south"}),
        request.model_copy(update={"federation": "other"}),
        request.model_copy(update={"node_key": OTHER_NODE.public_hex}),
        request.model_copy(update={"csr_pem": OTHER_TLS.csr_pem()}),
    ]
    assert len({join_fingerprint(item) for item in [request, *others]}) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"site": "south"},
        {"token": new_token()},
        {"node_key": OTHER_NODE.public_hex},
        {"csr_pem": OTHER_TLS.csr_pem()},
        {"certificate_pem": "x"},
        {"signature": "0" * 128},
    ],
)
def test_every_change_to_a_request_to_join_is_noticed(change: dict[str, Any]) -> None:
    request = join().model_copy(update=change)
    with pytest.raises(IdentityError, match="expected a JoinRequest signed by the key"):
        check_join_request(request, federation="clinic")


def test_a_request_to_join_another_federation_is_refused() -> None:
    with pytest.raises(IdentityError, match="a request for federation 'other', got 'clinic'"):
        check_join_request(join(), federation="other")


@pytest.mark.parametrize("csr", ["", "junk"])
def test_a_request_to_join_without_proof_of_the_tls_key_is_refused(csr: str) -> None:
    request = signed_anew(join(), "join", csr_pem=csr)
    with pytest.raises(IdentityError, match="expected a certificate request"):
        check_join_request(request, federation="clinic")


def organisation_certificate(
    names: tuple[str, ...] = ("node.hospital.example",), key: TlsKey = TLS
) -> str:
    return Forgery(names, usages=(CLIENT,), key=key).pem(ROOT_KEY, ROOT)


def test_a_certificate_of_the_organisation_s_own_ca_comes_along() -> None:
    pem = organisation_certificate()
    facts = check_join_request(join(pem + ROOT), federation="clinic")
    assert facts.tls_name == "node.hospital.example"
    assert facts.certificate_pem == pem + ROOT


def test_a_private_key_in_the_certificate_s_file_does_not_travel() -> None:
    pem = organisation_certificate()
    request = join(TLS.private_pem().decode() + pem)
    assert "PRIVATE KEY" not in encode(request).decode()
    assert request.certificate_pem == pem


def test_somebody_else_s_certificate_proves_nothing() -> None:
    stolen = organisation_certificate(key=OTHER_TLS)
    with pytest.raises(IdentityError, match="a certificate for the TLS key, got another key's"):
        join(stolen)
    request = signed_anew(join(organisation_certificate()), "join", certificate_pem=stolen)
    with pytest.raises(IdentityError, match="a certificate for the TLS key, got another key's"):
        check_join_request(request, federation="clinic")


@pytest.mark.parametrize(
    ("names", "got"),
    [
        ((), "''"),
        (("a.example", "b.example"), "'a.example, b.example'"),
        (("*.example",), "'*.example'"),
        (("A.example",), "'A.example'"),
    ],
)
def test_a_certificate_without_one_plain_name_names_nobody(
    names: tuple[str, ...], got: str
) -> None:
    with pytest.raises(IdentityError) as caught:
        check_join_request(join(organisation_certificate(names)), federation="clinic")
    assert f"without wildcard, got {got}" in str(caught.value)


def test_an_invitation_that_has_expired_is_not_used() -> None:
    with pytest.raises(
        IdentityError, match=r"got one that expired at 2026-06-01T12.*\nhint: check"
    ):
        join(expires=write_timestamp(NOW))


def test_an_invitation_whose_root_is_none_is_not_used() -> None:
    with pytest.raises(IdentityError, match="expected the invitation's root certificate as PEM"):
        join(ca_pem="junk")


def test_an_invitation_with_another_site_s_tls_name_is_not_used() -> None:
    with pytest.raises(IdentityError, match=r"for the name 'north\.site.*', got 'south\.site"):
        join(tls_name=site_tls_name("clinic", "south"))


def test_a_certificate_is_given_exactly_where_it_is_asked_for() -> None:
    with pytest.raises(IdentityError, match="got one although the federation's CA does"):
        make_join_request(
            invitation(), NODE, TLS, certificate_pem=organisation_certificate(), now=NOW
        )
    with pytest.raises(IdentityError, match=r"own CA issues it, got none\nhint: see identity"):
        join(tls_name=None)


def collect(now: datetime = NOW) -> CollectRequest:
    return make_collect_request("clinic", "north", NODE, now)


def check_collect(request: CollectRequest, **changes: Any) -> None:
    values = {"federation": "clinic", "site": "north", "node_key": NODE.public_hex, "now": NOW}
    check_collect_request(request, **(values | changes))


def renew(now: datetime = NOW) -> RenewRequest:
    return make_renew_request("clinic", "north", NODE, OTHER_TLS, now)


def check_renew(request: RenewRequest, **changes: Any) -> None:
    values = {"federation": "clinic", "site": "north", "node_key": NODE.public_hex, "now": NOW}
    check_renew_request(request, **(values | changes))


CASES: list[Any] = [("collect", collect, check_collect), ("renew", renew, check_renew)]
each_request = pytest.mark.parametrize(
    ("purpose", "make", "check"), CASES, ids=["collect", "renew"]
)
Make, Check = Callable[..., Any], Callable[..., None]


@each_request
def test_a_site_s_request_is_taken_also_after_a_journey(
    purpose: str, make: Make, check: Check
) -> None:
    request = make()
    check(decode(type(request), encode(request)))
    assert request == signed_anew(request, purpose)


@each_request
def test_a_recorded_request_is_refused_later(purpose: str, make: Make, check: Check) -> None:
    check(make(), now=NOW + timedelta(minutes=5))
    with pytest.raises(IdentityError, match="of the last 5 minutes, got one of 2026-06-01T12:00"):
        check(make(), now=NOW + timedelta(minutes=6))
    with pytest.raises(IdentityError, match="of the last 5 minutes"):
        check(make(NOW + timedelta(minutes=6)))


@each_request
def test_a_request_of_another_federation_site_or_key_is_refused(
    purpose: str, make: Make, check: Check
) -> None:
    with pytest.raises(IdentityError, match="a request for federation 'other', got 'clinic'"):
        check(make(), federation="other")
    with pytest.raises(IdentityError, match="a request of site 'south', got one of 'north'"):
        check(make(), site="south")
    with pytest.raises(IdentityError, match=r"expected (the node key|a RenewRequest signed)"):
        check(make(), node_key=OTHER_NODE.public_hex)
    with pytest.raises(IdentityError, match="signed by the key"):
        check(signed_anew(make(), purpose, OTHER_NODE))


@each_request
def test_a_signature_for_one_purpose_serves_no_other(
    purpose: str, make: Make, check: Check
) -> None:
    for other in {"join", "collect", "renew", "session", "roster"} - {purpose}:
        with pytest.raises(IdentityError, match="signed by the key"):
            check(signed_anew(make(), other))


@each_request
def test_every_change_to_a_request_is_noticed(purpose: str, make: Make, check: Check) -> None:
    later = write_timestamp(NOW + timedelta(minutes=1))
    with pytest.raises(IdentityError, match="signed by the key"):
        check(make().model_copy(update={"time": later}))
    with pytest.raises(IdentityError, match="signed by the key"):
        check(make().model_copy(update={"signature": "0" * 128}))


def test_a_question_with_another_node_key_is_refused_even_where_it_is_well_signed() -> None:
    theirs = make_collect_request("clinic", "north", OTHER_NODE, NOW)
    with pytest.raises(IdentityError, match=r"expected the node key .* that asked to join, got"):
        check_collect(theirs)


def test_a_renewal_proves_the_new_tls_key() -> None:
    with pytest.raises(IdentityError, match="expected a certificate request"):
        check_renew(signed_anew(renew(), "renew", csr_pem="junk"))
    swapped = renew().model_copy(update={"csr_pem": TLS.csr_pem()})
    with pytest.raises(IdentityError, match="expected a RenewRequest signed by the key"):
        check_renew(swapped)
