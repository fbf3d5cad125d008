"""The server's and the first operator's certificates: new ones in time, by our own CA."""

import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from coordinator.service.access import CERTIFICATE_FILE, KEY_FILE, replace_text
from coordinator.service.credentials import Credentials
from coordinator.service.folder import read_text
from coordinator.service.servers import ServerTls
from core.errors import ServiceError
from privacy.identities.certificates import read_certificate
from privacy.identities.clock import utc_now
from privacy.identities.tls_keys import TlsKey

# A certificate is renewed when this part of its life is over.
_RENEW_AT: Final = 2 / 3


class ServerCertificate:
    """The server's key and certificate; a new certificate in time."""

    def __init__(self, credentials: Credentials, now: Callable[[], datetime] = utc_now) -> None:
        self._credentials = credentials
        self._now = now
        self._lock = threading.Lock()
        self._renew_at: datetime | None = None
        self._tls = self._fresh()

    def __call__(self) -> ServerTls:
        """What the servers show now."""
        with self._lock:
            if self._renew_at is not None and self._now() >= self._renew_at:
                self._tls = self._fresh()
            return self._tls

    def _fresh(self) -> ServerTls:
        now = self._now()
        chain = self._credentials.chain(now)
        if self._credentials.issuing is not None:
            self._renew_at = renewal_time(chain)
        return ServerTls(
            key_pem=self._credentials.server_key.private_pem(),
            chain_pem=chain.encode("ascii"),
            root_pem=self._credentials.root_pem.encode("ascii"),
        )


def renewal_time(chain_pem: str) -> datetime:
    """When two thirds of a certificate's life are over."""
    facts = read_certificate(chain_pem)
    return facts.not_before + (facts.not_after - facts.not_before) * _RENEW_AT


def renew_operator(folder: Path, credentials: Credentials, now: datetime) -> bool:
    """Renews the certificate in an operator's folder, where it is due; true where it was.

    Whether its holder may do anything is the roster's to say, not the certificate's.

    Raises:
        CloisterError: What lies there cannot be read or written.
    """
    if credentials.issuing is None or not (folder / KEY_FILE).exists():
        return False
    chain = read_text(folder / CERTIFICATE_FILE)
    if now < renewal_time(chain):
        return False
    (tls_name,) = read_certificate(chain).dns_names
    request = TlsKey.load(folder / KEY_FILE).csr_pem()
    try:
        replace_text(folder / CERTIFICATE_FILE, credentials.issue_client(request, tls_name, now))
    except OSError as error:
        raise ServiceError(f"cannot write in {folder}: {error.strerror}") from error
    return True
