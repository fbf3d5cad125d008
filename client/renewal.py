"""The site's next certificate, in time before the present one ends."""

import logging
from datetime import datetime, timedelta
from typing import Any, Final

from client.calls import call
from client.identity_folder import IdentityFolder
from client.membership import check_admission
from core.errors import CloisterError, IdentityError
from core.wire.channel import RENEW
from core.wire.documents import Invitation, RenewReply
from privacy.identities.certificates import read_certificate
from privacy.identities.clock import utc_now
from privacy.identities.enrolment import make_renew_request

logger = logging.getLogger(__name__)

_RETRY: Final = timedelta(minutes=10)


class Renewal:
    """Renews at two thirds of a certificate's life, over an open session's channel.

    Where the organisation's own CA issues certificates, it only says when one is due.

    Args:
        identity: Holds the certificate.
        membership: Whom the site belongs to.
    """

    def __init__(self, identity: IdentityFolder, membership: Invitation) -> None:
        self._identity = identity
        self._membership = membership
        self._due = self._next_due()

    def renew_when_due(self, channel: Any, now: datetime) -> bool:
        """Renews where it is time; a failure is logged and tried again later.

        Returns:
            Whether there is a new certificate.
        """
        if now < self._due:
            return False
        self._due = now + _RETRY
        try:
            if self._identity.own_authority:
                logger.warning("the certificate ends soon: have the organisation's CA renew it")
                return False
            self._renew(channel, now)
            self._due = self._next_due()
        except CloisterError as error:
            logger.error("cannot renew the certificate (%s): %s", error.code, error)
            return False
        logger.info("renewed the certificate; next at %s", self._due.isoformat())
        return True

    def _renew(self, channel: Any, now: datetime) -> None:
        membership, identity = self._membership, self._identity
        request = make_renew_request(
            membership.federation,
            membership.site,
            identity.node_key(),
            identity.tls_key(),
            now,
        )
        reply = call(channel, RENEW, request, RenewReply)
        pinned = identity.roster()
        if pinned is None:
            raise IdentityError("expected a pinned roster, got none", hint="join again")
        member = check_admission(identity, membership, pinned, now)
        chain = reply.certificate_pem
        identity.check_own_certificate(chain, membership, member.tls_name, utc_now())
        identity.keep_certificate(chain)

    def _next_due(self) -> datetime:
        facts = read_certificate(self._identity.certificate_pem())
        return facts.not_before + (facts.not_after - facts.not_before) * 2 / 3
