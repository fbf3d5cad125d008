"""Where a site keeps who it is: its keys, its certificate, and what it pinned when it joined.

    node.key         Ed25519, mode 0600: signs sessions and requests
    tls.key          P-256, mode 0600; not where the organisation's own CA issues certificates
    vault.key        mode 0600: seals the replies in outbox/
    membership.json  the invitation without its token: addresses, root, the admin's key
    certificate.pem  the present certificate and the issuing CA's
    roster.json      the newest signed roster that was seen
    outbox/          see ``client.outbox``

The folder belongs to one user and is closed to all others, so what lies in it is believed.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar

from core.errors import CloisterError, IdentityError
from core.messages import WireMessage, decode, encode
from core.site_config import IdentitySection
from core.wire.documents import Invitation, SignedRoster
from privacy.identities.certificates import PeerCertificate, check_certificate
from privacy.identities.tls_keys import TlsKey
from privacy.signing import SiteKey, write_private_file, write_synced
from privacy.vault import Vault

_NO_TOKEN: Final = "0" * 32
# A certificate of four links and a key are shorter.
_MAX_PEM_BYTES: Final = 65_536

Document = TypeVar("Document", Invitation, SignedRoster)


class IdentityFolder:
    """One site's identity on the disk.

    Guarantees:
        Keys are made here and are never overwritten. A folder or a key that others can read is
        refused. What is replaced (certificate, roster) is on the disk, whole, when the method
        returns, and a roster never goes back.

    Args:
        section: The site's configuration, with absolute paths.
    """

    def __init__(self, section: IdentitySection) -> None:
        self.folder = section.folder
        self._own_certificate = section.certificate
        self._own_key = section.key

    @property
    def own_authority(self) -> bool:
        """Whether the organisation's own CA issues the certificates."""
        return self._own_certificate is not None

    @property
    def outbox(self) -> Path:
        """The folder of kept replies."""
        return self.folder / "outbox"

    def make_keys(self) -> None:
        """Makes the folder and the keys that are missing.

        Raises:
            IdentityError: The folder cannot be made, or is open to others.
            PrivacyError: A key cannot be written.
        """
        with _disk(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.check_folder()
        if not os.path.lexists(self._path("node.key")):
            write_private_file(self._path("node.key"), SiteKey.generate().private_pem())
        if not self.own_authority and not os.path.lexists(self._path("tls.key")):
            write_private_file(self._path("tls.key"), TlsKey.generate().private_pem())
        if not os.path.lexists(self._path("vault.key")):
            Vault.create(self._path("vault.key"))

    def check_folder(self) -> None:
        """Refuses a folder that is missing, another user's or open to others.

        Raises:
            IdentityError: It is.
        """
        with _disk(self.folder, hint="`cloister client join` makes it"):
            status = self.folder.stat()
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077 or status.st_uid != os.geteuid():
            raise IdentityError(
                f"expected {self.folder} to belong to user {os.geteuid()} and to be closed to "
                f"others, got user {status.st_uid} and mode {mode:04o}",
                hint=f"chmod 700 {self.folder}; if others could write there, join anew",
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second client off the same identity.

        Raises:
            IdentityError: One runs already.
        """
        with _disk(self.folder):
            descriptor = os.open(self._path("lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise IdentityError(
                    f"expected {self.folder} for this client alone, got one that runs already",
                    hint="stop the other client first",
                ) from error
            yield
        finally:
            os.close(descriptor)

    def node_key(self) -> SiteKey:
        """The node key; SiteKeyError where it cannot be used."""
        return SiteKey.load(self._path("node.key"))

    def tls_key(self) -> TlsKey:
        """The TLS key; SiteKeyError where it cannot be used."""
        return TlsKey.load(self._own_key or self._path("tls.key"))

    def vault(self) -> Vault:
        """What seals kept replies; VaultError where its key cannot be used."""
        return Vault.load(self._path("vault.key"))

    def membership(self) -> Invitation | None:
        """What was pinned at joining; ``None`` before."""
        return self._read(Invitation, "membership.json")

    def require_membership(self) -> Invitation:
        """What was pinned at joining.

        Raises:
            IdentityError: The site has not joined.
        """
        membership = None
        if os.path.lexists(self.folder):
            self.check_folder()
            membership = self.membership()
        if membership is None:
            raise IdentityError(
                f"expected a site that has joined, got nothing pinned in {self.folder}",
                hint="cloister client join INVITATION --config FILE",
            )
        return membership

    def pin_membership(self, invitation: Invitation) -> None:
        """Keeps what the invitation says; its token is of no more use and is not kept."""
        self._write("membership.json", invitation.model_copy(update={"token": _NO_TOKEN}))

    def roster(self) -> SignedRoster | None:
        """The newest roster that was seen; ``None`` before the first."""
        return self._read(SignedRoster, "roster.json")

    def pin_roster(self, signed: SignedRoster) -> None:
        """Keeps a roster that ``check_roster`` accepted against the pinned one."""
        self._write("roster.json", signed)

    def certificate_pem(self) -> str:
        """The certificate with its chain.

        Raises:
            IdentityError: There is none, or it cannot be read.
        """
        path = self._own_certificate or self._path("certificate.pem")
        hint = "`cloister client join` collects it once the admin approved"
        with _disk(path, hint=hint), path.open("rb") as file:
            data = file.read(_MAX_PEM_BYTES + 1)
        try:
            if len(data) <= _MAX_PEM_BYTES:
                return data.decode("ascii")
        except UnicodeDecodeError:
            pass
        raise IdentityError(f"expected a certificate as PEM in {path}, got something else")

    def keep_certificate(self, chain_pem: str) -> None:
        """Keeps a certificate that ``check_own_certificate`` accepted."""
        self._replace("certificate.pem", chain_pem.encode("ascii"))

    def check_own_certificate(
        self, chain_pem: str, membership: Invitation, tls_name: str, now: datetime
    ) -> PeerCertificate:
        """Checks that a certificate is this site's, good now, and for the key that lies here.

        Raises:
            IdentityError: It is not.
        """
        facts = check_certificate(chain_pem, membership.ca_pem, tls_name, "client", now)
        if facts.public_key_digest != self.tls_key().public_key_digest:
            raise IdentityError(
                "expected a certificate for this site's TLS key, got another key's",
                hint="were keys and certificate restored from different copies?",
            )
        return facts

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _read(self, kind: type[Document], name: str) -> Document | None:
        path = self._path(name)
        if not os.path.lexists(path):
            return None
        with _disk(path):
            data = path.read_bytes()
        try:
            return decode(kind, data)
        except CloisterError as error:
            raise IdentityError(
                f"expected {path} as it was written, got: {error.message}",
                hint="restore it from a copy; else join anew",
            ) from error

    def _write(self, name: str, document: WireMessage) -> None:
        self._replace(name, encode(document))

    def _replace(self, name: str, data: bytes) -> None:
        path, unfinished = self._path(name), self._path(f".{name}.unfinished")
        with _disk(path):
            write_synced(unfinished, data, exclusive=False)
            os.replace(unfinished, path)
            descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _disk(path: Path, *, hint: str = "check the path, its owner and the disk") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise IdentityError(
            f"expected to read and write {path}, got: {error.strerror}", hint=hint
        ) from error
