"""How a site joins: its keys, the request, and what it collects once the admin approved."""

import logging
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from client.calls import call, enrolment_channel
from client.identity_folder import IdentityFolder
from client.membership import check_admission, check_clock
from core.errors import CloisterError, IdentityError, SessionError
from core.messages import MAX_MESSAGE_BYTES, decode
from core.site_config import SiteConfig
from core.wire.channel import COLLECT, JOIN
from core.wire.documents import CollectReply, Invitation, JoinReply, SignedRoster
from privacy.identities.certificates import read_certificate
from privacy.identities.clock import read_timestamp, utc_now
from privacy.identities.enrolment import join_fingerprint, make_collect_request, make_join_request

logger = logging.getLogger(__name__)

_POLL_SECONDS: Final = 3.0


def read_invitation(path: Path) -> Invitation:
    """Reads the file that the federation's admin handed over.

    Raises:
        IdentityError: It cannot be read, or is no invitation.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MESSAGE_BYTES + 1)
    except OSError as error:
        raise IdentityError(f"expected an invitation at {path}, got: {error.strerror}") from error
    try:
        return decode(Invitation, data)
    except CloisterError as error:
        raise IdentityError(
            f"expected an invitation in {path}, got: {error.message}",
            hint="it is the file that `cloister coordinator invite` wrote",
        ) from error


def join(
    config: SiteConfig,
    identity: IdentityFolder,
    invitation: Invitation,
    show_fingerprint: Callable[[str], None],
) -> None:
    """Asks to be enrolled; asking again with the same keys changes nothing.

    Args:
        config: The site's.
        identity: Where keys and pins are kept; missing keys are made.
        invitation: From the admin.
        show_fingerprint: Told what the site's people read out by telephone.

    Raises:
        IdentityError: The invitation does not fit, or the coordinator refuses it.
        SessionError: The coordinator cannot be reached.
    """
    _check_invitation(config, invitation)
    identity.make_keys()
    pinned = identity.membership()
    if pinned is not None:
        _check_same_federation(identity, pinned, invitation)
    now, node_key = utc_now(), identity.node_key()
    certificate = identity.certificate_pem() if identity.own_authority else ""
    request = make_join_request(
        invitation, node_key, identity.tls_key(), certificate_pem=certificate, now=now
    )
    fingerprint = join_fingerprint(request)
    with enrolment_channel(invitation) as channel:
        try:
            answer = call(channel, JOIN, request, JoinReply)
        except IdentityError:
            # The token is good once: was it these keys that used it?
            if not _is_known(channel, invitation, identity):
                raise
        else:
            if answer.fingerprint != fingerprint:
                raise IdentityError(
                    f"expected the fingerprint {fingerprint}, got {answer.fingerprint}",
                    hint="what arrived at the coordinator is not what this site sent",
                )
    identity.pin_membership(invitation)
    show_fingerprint(fingerprint)


def collect(identity: IdentityFolder, membership: Invitation, *, now: datetime) -> bool:
    """Asks whether the admin approved; keeps certificate and roster where that is so.

    Returns:
        False while nobody decided.

    Raises:
        IdentityError: The request was refused, or what came is not this site's.
        SessionError: The coordinator cannot be reached.
    """
    with enrolment_channel(membership) as channel:
        reply = ask_collect(channel, membership, identity, now)
    if reply.state == "pending":
        return False
    if reply.state == "refused" or reply.roster is None:
        raise IdentityError(
            f"expected site {membership.site} to be approved, got a refusal",
            hint="ask the federation's admin for a new invitation",
        )
    check_clock(read_timestamp(reply.time), now)
    keep_admission(identity, membership, reply.roster, reply.certificate_pem, now)
    return True


def wait_for_approval(
    identity: IdentityFolder, membership: Invitation, wait_seconds: float | None
) -> bool:
    """Asks again and again; false where nobody decided within ``wait_seconds``.

    Raises:
        IdentityError: See ``collect``.
    """
    deadline = None if wait_seconds is None else time.monotonic() + wait_seconds
    while True:
        try:
            if collect(identity, membership, now=utc_now()):
                return True
        except SessionError as error:
            logger.warning("cannot ask the coordinator: %s", error)
        left = _POLL_SECONDS if deadline is None else deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(left, _POLL_SECONDS))


def present_certificate(identity: IdentityFolder, membership: Invitation, now: datetime) -> str:
    """The certificate with its chain; one that ran out while the site was off is collected anew.

    Raises:
        IdentityError: There is none that is good now.
        SessionError: The coordinator cannot be reached.
    """
    chain = identity.certificate_pem()
    certificate = read_certificate(chain)
    try:
        certificate.check_time(now)
        return chain
    except IdentityError:
        # One of the future is no reason to ask for another: it is this machine's clock.
        from_future = now < certificate.not_before
        if from_future or identity.own_authority or not collect(identity, membership, now=now):
            raise
    return identity.certificate_pem()


def keep_admission(
    identity: IdentityFolder,
    membership: Invitation,
    signed: SignedRoster,
    certificate_pem: str,
    now: datetime,
) -> None:
    """Checks everything, then keeps the certificate and pins the roster.

    Raises:
        IdentityError: Something is not this site's, or not signed by the pinned admin.
    """
    member = check_admission(identity, membership, signed, now)
    chain = identity.certificate_pem() if identity.own_authority else certificate_pem
    identity.check_own_certificate(chain, membership, member.tls_name, now)
    if not identity.own_authority:
        identity.keep_certificate(chain)
    identity.pin_roster(signed)


def ask_collect(
    channel: Any, membership: Invitation, identity: IdentityFolder, now: datetime
) -> CollectReply:
    """One question; see ``call`` for what it raises."""
    request = make_collect_request(membership.federation, membership.site, identity.node_key(), now)
    return call(channel, COLLECT, request, CollectReply)


def _is_known(channel: Any, invitation: Invitation, identity: IdentityFolder) -> bool:
    try:
        return ask_collect(channel, invitation, identity, utc_now()).state != "refused"
    except IdentityError:
        return False


def _check_invitation(config: SiteConfig, invitation: Invitation) -> None:
    if invitation.site != config.site.name:
        raise IdentityError(
            f"expected an invitation for {config.site.name}, got one for {invitation.site}"
        )
    declared = config.site.num_examples
    if declared is not None and declared != invitation.num_examples:
        raise IdentityError(
            f"expected an invitation for the declared size {declared}, "
            f"got one for {invitation.num_examples}",
            hint="the federation's file must name the size that the site declared",
        )


def _check_same_federation(
    identity: IdentityFolder, pinned: Invitation, invitation: Invitation
) -> None:
    """A second invitation may bring new addresses, but not another admin or root."""
    for field in ("federation", "site", "admin_key", "ca_pem"):
        if getattr(pinned, field) != getattr(invitation, field):
            raise IdentityError(
                f"expected an invitation of the federation that {identity.folder} belongs to, "
                f"got one with another {field}",
                hint="a new federation takes an identity.folder of its own",
            )
