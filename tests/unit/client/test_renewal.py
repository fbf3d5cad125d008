"""The next certificate, in time, over an open session's channel."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from client.calls import session_channel
from client.renewal import Renewal
from core.errors import IdentityError
from core.wire.documents import RenewReply, RenewRequest, RosterMember
from privacy.identities.certificates import read_certificate
from privacy.identities.clock import utc_now
from privacy.identities.enrolment import make_renew_request
from privacy.identities.tls_keys import TlsKey
from privacy.signing import SiteKey
from tests.support.joining import Consortium, Joined, joined_site
from tests.support.site_service import EchoApp, PlainCoordinator, Running, until


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Joined]:
    joined = joined_site(Consortium(), tmp_path)
    yield joined
    joined.servers.stop()


@pytest.fixture
def channel(joined: Joined) -> Iterator[Any]:
    identity = joined.identity
    with session_channel(
        joined.membership, identity.tls_key(), identity.certificate_pem()
    ) as channel:
        yield channel


def present(joined: Joined) -> str:
    return read_certificate(joined.identity.certificate_pem()).fingerprint


def with_present_time(
    federation: str, site: str, node_key: SiteKey, tls_key: TlsKey, now: datetime
) -> RenewRequest:
    """The test's clock runs ahead; the coordinator's does not."""
    return make_renew_request(federation, site, node_key, tls_key, utc_now())


def test_a_certificate_is_renewed_at_two_thirds_of_its_life(
    joined: Joined, channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewal, before = Renewal(joined.identity, joined.membership), present(joined)
    assert not renewal.renew_when_due(channel, utc_now() + timedelta(hours=15))
    assert present(joined) == before
    # One of an hour; what comes for it is of a day, so that it shows which one lies there.
    name, issuing = joined.consortium.members["north"].tls_name, joined.consortium.authority.issuing
    joined.identity.keep_certificate(
        issuing.issue(joined.identity.tls_key(), name, "client", 1, utc_now())
    )
    renewal = Renewal(joined.identity, joined.membership)
    late = utc_now() + timedelta(minutes=45)
    assert renewal.renew_when_due(channel, utc_now() + timedelta(minutes=3)) is False
    with monkeypatch.context() as patched:
        patched.setattr("client.renewal.make_renew_request", with_present_time)
        assert renewal.renew_when_due(channel, late)
    facts = read_certificate(joined.identity.certificate_pem())
    assert facts.not_after - facts.not_before >= timedelta(hours=24)
    assert not renewal.renew_when_due(channel, late)


class Wrong(Consortium):
    """Answers a renewal with something else."""

    def renew(self, member: RosterMember, request: RenewRequest) -> RenewReply:
        """Another key's certificate."""
        if self.broken is not None:
            raise self.broken
        chain = self.add("south").chain_pem.decode()
        return RenewReply(certificate_pem=chain)


def test_an_answer_that_is_not_for_this_site_is_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    joined = joined_site(Wrong(), tmp_path)
    try:
        identity, before = joined.identity, present(joined)
        renewal = Renewal(identity, joined.membership)
        with session_channel(
            joined.membership, identity.tls_key(), identity.certificate_pem()
        ) as channel:
            later = utc_now() + timedelta(minutes=4)
            renewal._due = utc_now()
            assert not renewal.renew_when_due(channel, later)
            assert present(joined) == before
            assert "cannot renew the certificate (identity)" in caplog.text
            assert not renewal.renew_when_due(channel, later)  # not at every tick
            assert caplog.text.count("cannot renew") == 1
            joined.consortium.broken = IdentityError("no")
            assert not renewal.renew_when_due(channel, later + timedelta(minutes=11))
            assert "the coordinator refuses this site" in caplog.text
    finally:
        joined.servers.stop()


def test_the_organisation_s_own_certificate_is_only_watched(
    joined: Joined, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(joined.identity), "own_authority", True)
    renewal = Renewal(joined.identity, joined.membership)
    assert not renewal.renew_when_due(None, utc_now() + timedelta(hours=20))
    assert "have the organisation's CA renew it" in caplog.text


def test_a_new_session_shows_the_new_certificate_between_two_orders(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed = []

    def once(self: Renewal, channel: Any, now: Any) -> bool:
        renewed.append(now)
        return len(renewed) == 1

    monkeypatch.setattr(Renewal, "renew_when_due", once)
    coordinator = PlainCoordinator(joined)
    with Running(joined, coordinator.dial, EchoApp()):
        until("another session", lambda: len(coordinator.streams) == 2)
        until("it to be open", lambda: coordinator.stream.session.is_open)
        assert coordinator.streams[0].closed
