"""How a site gets in: a token, a request that proves two keys, and what each side checks of it.

    invitation --(trusted channel)--> site --JoinRequest--> coordinator --fingerprint--> admin
    site --CollectRequest--> coordinator --CollectReply--> site;  later RenewRequest / RenewReply

Deliberately not checked here: that a token was not used before, and that an admin approved. Both
are the coordinator's store's, in one transaction.
"""

import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeVar

from core.digests import canonical_json, json_digest, sha256_hex
from core.errors import IdentityError
from core.wire.documents import DNS_NAME, CollectRequest, Invitation, JoinRequest, RenewRequest
from privacy.identities.certificates import load_chain, read_certificate, write_chain
from privacy.identities.clock import check_fresh, read_timestamp, write_timestamp
from privacy.identities.names import site_tls_name
from privacy.identities.tls_keys import TlsKey, public_key_digest, read_csr
from privacy.signing import SiteKey, sign_document, verify_document

INVITATION_LIFETIME: Final = timedelta(hours=24)
_UNSIGNED: Final = "0" * 128

Signed = TypeVar("Signed", JoinRequest, CollectRequest, RenewRequest)


@dataclass(frozen=True)
class JoinFacts:
    """What a request to join proved."""

    fingerprint: str
    """Over the federation, the site and both its keys: what people compare by telephone."""
    public_key_digest: str
    """Of the TLS key whose possession was proved."""
    tls_name: str | None
    """The name in the certificate from the organisation's own CA; ``None`` where ours issues."""
    certificate_pem: str
    """That certificate with its chain and nothing else; empty where ours issues."""


def new_token() -> str:
    """128 random bits as hexadecimal digits."""
    return secrets.token_hex(16)


def token_hash(token: str, federation: str, site: str) -> str:
    """What is stored of a token. It holds for one site of one federation.

    A plain hash is enough: a token has 128 random bits, which nobody tries one by one.
    """
    return sha256_hex(
        b"cloister/token\0"
        + canonical_json({"federation": federation, "site": site, "token": token})
    )


def check_token(request: JoinRequest, *, stored_hash: str, expires: str, now: datetime) -> None:
    """Checks the token of a request to join against what was stored of the invitation.

    **Guarantees**: Returns only for the token of this site's invitation and before its end; how
    much of a wrong token was right does not show in the time taken.

    Raises:
        IdentityError: It is another, or too late. Who guesses learns no more than that.
    """
    given = token_hash(request.token, request.federation, request.site)
    is_right = hmac.compare_digest(given.encode("ascii"), stored_hash.encode("ascii"))
    if not is_right or now >= read_timestamp(expires):
        raise IdentityError(
            f"expected a valid token for site {request.site!r}, got one that is wrong, used or "
            "expired",
            hint="ask the federation's admin for a new invitation",
        )


def make_join_request(
    invitation: Invitation,
    node_key: SiteKey,
    tls_key: TlsKey,
    *,
    certificate_pem: str = "",
    now: datetime,
) -> JoinRequest:
    """A site's request to be enrolled, signed with both its keys.

    Args:
        invitation: From the federation's admin.
        node_key: The site's new Ed25519 key.
        tls_key: The key of its TLS certificate.
        certificate_pem: The certificate and chain from the organisation's own CA, where the
            federation uses one; only the certificates in it are sent.
        now: The time.

    Raises:
        IdentityError: The invitation has expired or names another TLS name than the site's, its
            root cannot be read, or the certificate is missing, superfluous or another key's.
    """
    if now >= read_timestamp(invitation.expires):
        raise IdentityError(
            f"expected an invitation that is valid at {write_timestamp(now)}, "
            f"got one that expired at {invitation.expires}",
            hint="check the clock; else ask the federation's admin for a new invitation",
        )
    load_chain(invitation.ca_pem, "the invitation's root certificate")
    wants_ours = invitation.tls_name is not None
    if wants_ours == bool(certificate_pem):
        raise IdentityError(
            "expected a certificate exactly where the organisation's own CA issues it, "
            + ("got one although the federation's CA does" if wants_ours else "got none"),
            hint="see identity.certificate in the site's configuration",
        )
    if wants_ours and invitation.tls_name != site_tls_name(invitation.federation, invitation.site):
        raise IdentityError(
            f"expected an invitation for the name "
            f"{site_tls_name(invitation.federation, invitation.site)!r}, "
            f"got {invitation.tls_name!r}"
        )
    request = JoinRequest(
        federation=invitation.federation,
        site=invitation.site,
        token=invitation.token,
        node_key=node_key.public_hex,
        csr_pem=tls_key.csr_pem(),
        certificate_pem=_only_certificates(certificate_pem, tls_key.public_key_digest),
        signature=_UNSIGNED,
    )
    return _signed(node_key, "join", request)


def check_join_request(request: JoinRequest, *, federation: str) -> JoinFacts:
    """Checks what a request to join proves by itself; see also ``check_token``.

    **Guarantees**: Returns only where the request is for this federation, the node key signed all
    of it, the TLS key signed the certificate request in it, and a certificate that came along is
    that TLS key's and bears one DNS name.

    Raises:
        IdentityError: It is not so.
    """
    _check_federation(request.federation, federation)
    verify_document(request.node_key, "join", request)
    digest = public_key_digest(read_csr(request.csr_pem))
    chain = _only_certificates(request.certificate_pem, digest)
    return JoinFacts(
        fingerprint=_fingerprint(request, digest),
        public_key_digest=digest,
        tls_name=_one_name(chain) if chain else None,
        certificate_pem=chain,
    )


def join_fingerprint(request: JoinRequest) -> str:
    """What the admin approves and the site's people read out; 64 hexadecimal digits.

    **Guarantees**: Two requests have one fingerprint only if federation, site, node key and TLS
    key are the same.

    Raises:
        IdentityError: The certificate request cannot be read.
    """
    return _fingerprint(request, public_key_digest(read_csr(request.csr_pem)))


def make_collect_request(
    federation: str, site: str, node_key: SiteKey, now: datetime
) -> CollectRequest:
    """A site's question whether it was approved."""
    request = CollectRequest(
        federation=federation,
        site=site,
        node_key=node_key.public_hex,
        time=write_timestamp(now),
        signature=_UNSIGNED,
    )
    return _signed(node_key, "collect", request)


def check_collect_request(
    request: CollectRequest, *, federation: str, site: str, node_key: str, now: datetime
) -> None:
    """Checks that the site that asked to join is asking again.

    **Guarantees**: Returns only for a request of the last minutes that this node key signed for
    this site of this federation.

    Args:
        request: The request.
        federation: The federation.
        site: The site whose request to join is stored.
        node_key: The key in that stored request.
        now: The time.

    Raises:
        IdentityError: It is not so.
    """
    _check_federation(request.federation, federation)
    _check_holder(request.site, site)
    _check_node_key(request.node_key, node_key)
    verify_document(node_key, "collect", request)
    check_fresh("a question for a certificate", request.time, now)


def make_renew_request(
    federation: str, site: str, node_key: SiteKey, tls_key: TlsKey, now: datetime
) -> RenewRequest:
    """A site's request for its next certificate."""
    request = RenewRequest(
        federation=federation,
        site=site,
        csr_pem=tls_key.csr_pem(),
        time=write_timestamp(now),
        signature=_UNSIGNED,
    )
    return _signed(node_key, "renew", request)


def check_renew_request(
    request: RenewRequest, *, federation: str, site: str, node_key: str, now: datetime
) -> None:
    """Checks that an enrolled site asks for its next certificate.

    **Guarantees**: Returns only for a request of the last minutes that the site's node key signed
    for this site of this federation, with a certificate request that the new TLS key signed.

    Args:
        request: The request.
        federation: The federation.
        site: The roster's member that the session belongs to.
        node_key: That member's key.
        now: The time.

    Raises:
        IdentityError: It is not so.
    """
    _check_federation(request.federation, federation)
    _check_holder(request.site, site)
    verify_document(node_key, "renew", request)
    check_fresh("a request for the next certificate", request.time, now)
    read_csr(request.csr_pem)


def _signed(key: SiteKey, purpose: str, request: Signed) -> Signed:
    return request.model_copy(update={"signature": sign_document(key, purpose, request)})


def _fingerprint(request: JoinRequest, tls_public_key_digest: str) -> str:
    return json_digest(
        {
            "purpose": "cloister/join",
            "federation": request.federation,
            "site": request.site,
            "node-key": request.node_key,
            "tls-public-key-digest": tls_public_key_digest,
        }
    )


def _only_certificates(certificate_pem: str, digest: str) -> str:
    """The certificates of a PEM text without a key that may lie among them; empty for empty."""
    if not certificate_pem:
        return ""
    chain = write_chain(load_chain(certificate_pem, "a certificate chain"))
    if read_certificate(chain).public_key_digest != digest:
        raise IdentityError("expected a certificate for the TLS key, got another key's")
    return chain


def _one_name(chain_pem: str) -> str:
    names = read_certificate(chain_pem).dns_names
    if len(names) != 1 or not re.fullmatch(DNS_NAME, names[0]):
        raise IdentityError(
            f"expected a certificate with one DNS name in lower case and without wildcard, "
            f"got {', '.join(names)[:200]!r}",
            hint="have the organisation's CA issue one with a single subjectAltName",
        )
    return names[0]


def _check_federation(given: str, federation: str) -> None:
    if given != federation:
        raise IdentityError(f"expected a request for federation {federation!r}, got {given!r}")


def _check_holder(given: str, site: str) -> None:
    if given != site:
        raise IdentityError(f"expected a request of site {site!r}, got one of {given!r}")


def _check_node_key(given: str, node_key: str) -> None:
    if given != node_key:
        raise IdentityError(
            f"expected the node key {node_key[:16]}... that asked to join, got {given[:16]}..."
        )
