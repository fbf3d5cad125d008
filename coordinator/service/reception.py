"""The doorkeeper of the running service: rosters, joins, certificates; see ``doorkeeper``."""

import logging
import threading
from collections.abc import Callable
from datetime import datetime

from coordinator.service.admissions import Admissions, Applicant
from coordinator.service.credentials import Credentials
from core.errors import CloisterError, IdentityError
from core.messages import MAX_TEXT
from core.wire.documents import (
    CollectReply,
    CollectRequest,
    ControlReply,
    ControlRequest,
    JoinReply,
    JoinRequest,
    RenewReply,
    RenewRequest,
    RosterMember,
    RosterOperator,
    SignedRoster,
)
from privacy.identities.certificates import check_certificate
from privacy.identities.clock import utc_now, write_timestamp
from privacy.identities.enrolment import (
    JoinFacts,
    check_collect_request,
    check_join_request,
    check_renew_request,
)
from privacy.identities.names import site_tls_name
from privacy.identities.roster import check_roster

logger = logging.getLogger(__name__)

Control = Callable[[RosterOperator, ControlRequest], ControlReply]


class Reception:
    """Answers the servers from the database. Safe to share between threads.

    Args:
        admissions: The tables.
        credentials: Whose certificates count, and what issues ours.
        federation: The federation.
        admin_key: The key that signs rosters.
        control: What an operator's request leads to.
        now: UTC.
    """

    def __init__(
        self,
        admissions: Admissions,
        credentials: Credentials,
        *,
        federation: str,
        admin_key: str,
        control: Control,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._admissions = admissions
        self._credentials = credentials
        self._federation = federation
        self._admin_key = admin_key
        self._control = control
        self._now = now
        self._lock = threading.Lock()
        self._checked: SignedRoster | None = None

    def roster(self) -> SignedRoster | None:
        """The newest roster.

        Guarantees:
            The admin's key signed it for this federation, and this process has seen no newer one.
            A change by the admin's commands shows at the next call.

        Raises:
            IdentityError: Another key signed it, or it has expired.
            RosterRollbackError: It is older than one that this process has seen.
        """
        signed = self._admissions.roster()
        with self._lock:
            if signed is not None and signed == self._checked:
                return signed
            if signed is None and self._checked is None:
                return None
            if signed is None:
                raise IdentityError("expected the roster that was there before, got none")
            check_roster(
                signed,
                admin_key=self._admin_key,
                federation=self._federation,
                now=self._now(),
                pinned=self._checked,
            )
            self._checked = signed
        logger.info("roster of epoch %d", signed.roster.epoch)
        return signed

    def join(self, request: JoinRequest) -> JoinReply:
        """Takes a token and keeps the request until the admin decides.

        Guarantees:
            A token is good for one request, of one site, which holds both its keys.

        Raises:
            IdentityError: A proof or the token is wrong, or another CA issued the certificate.
        """
        facts = check_join_request(request, federation=self._federation)
        tls_name = self._tls_name(request, facts)
        self._admissions.redeem(
            request,
            self._now(),
            lambda num_examples: Applicant(
                site=request.site,
                num_examples=num_examples,
                node_key=request.node_key,
                csr_pem=request.csr_pem,
                certificate_pem=facts.certificate_pem,
                tls_name=tls_name,
                fingerprint=facts.fingerprint,
            ),
        )
        logger.info("%s asks to join with the fingerprint %s", request.site, facts.fingerprint)
        return JoinReply(fingerprint=facts.fingerprint)

    def collect(self, request: CollectRequest) -> CollectReply:
        """Says where a request stands, and hands out the certificate.

        A site whose certificate ran out while it was off collects again: its node key, which the
        roster lists, says who it is.

        Raises:
            IdentityError: No such request was made, or another key asks.
        """
        now = self._now()
        state, applicant = self._admissions.find(request.site, request.node_key)
        check_collect_request(
            request,
            federation=self._federation,
            site=applicant.site,
            node_key=applicant.node_key,
            now=now,
        )
        signed = self.roster()
        time = write_timestamp(now)
        if state == "pending":
            return CollectReply(state="pending", time=time)
        if state == "refused" or signed is None or not _lists(signed, applicant):
            return CollectReply(state="refused", time=time)
        chain = applicant.certificate_pem or self._credentials.issue_client(
            applicant.csr_pem, applicant.tls_name, now
        )
        logger.info("%s collects its certificate", applicant.site)
        return CollectReply(state="approved", time=time, certificate_pem=chain, roster=signed)

    def renew(self, member: RosterMember, request: RenewRequest) -> RenewReply:
        """The next certificate of a site.

        Raises:
            IdentityError: The request is not the site's, or our CA does not issue.
        """
        now = self._now()
        check_renew_request(
            request,
            federation=self._federation,
            site=member.name,
            node_key=member.node_key,
            now=now,
        )
        chain = self._credentials.issue_client(request.csr_pem, member.tls_name, now)
        logger.info("%s has a new certificate", member.name)
        return RenewReply(certificate_pem=chain)

    def control(self, operator: RosterOperator, request: ControlRequest) -> ControlReply:
        """Does what an operator asks; a refusal is an answer too."""
        try:
            if request.command != "status" and operator.role != "operator":
                raise IdentityError(
                    f"expected an operator for {request.command}, got the {operator.role} "
                    f"{operator.name}",
                    hint="`cloister coordinator grant NAME --role operator`",
                )
            return self._control(operator, request)
        except CloisterError as error:
            logger.warning("refused %s to %s: %s", request.command, operator.name, error)
            return ControlReply(code=error.code, message=str(error)[:MAX_TEXT])

    def _tls_name(self, request: JoinRequest, facts: JoinFacts) -> str:
        """The name that the site's certificate bears, or will."""
        ours = self._credentials.issuing is not None
        if ours != (facts.tls_name is None):
            raise IdentityError(
                "expected a certificate exactly where the organisation's own CA issues it, got "
                + ("one from another CA" if ours else "none"),
                hint="join with the invitation as it is; see identity.certificate",
            )
        if facts.tls_name is None:
            return site_tls_name(self._federation, request.site)
        check_certificate(
            facts.certificate_pem, self._credentials.root_pem, facts.tls_name, "client", self._now()
        )
        return facts.tls_name


def _lists(signed: SignedRoster, applicant: Applicant) -> bool:
    return any(
        member.name == applicant.site
        and member.node_key == applicant.node_key
        and member.status == "active"
        for member in signed.roster.members
    )
