"""Ed25519 keys, what they sign, and the private files that they lie in.

What is signed is named, so no signature serves twice. Deliberately not checked here: whose key it
is. That is the ledger's first entry's, an invitation's or a roster's.
"""

import os
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from core.digests import canonical_json
from core.errors import IdentityError, SiteKeyError
from core.messages import WireMessage, wire_form

# An Ed25519 key's file has about 120 bytes, an RSA key's of 4096 bits about 3300.
_MAX_PRIVATE_FILE_BYTES: Final = 8192


class SiteKey:
    """A private key that signs for one site, or for the federation's admin.

    **Guarantees**: The private part is in no ``repr``, and is written only where
    ``private_pem`` is.
    """

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @classmethod
    def generate(cls) -> "SiteKey":
        """A new key from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> "SiteKey":
        """Reads a key file.

        **Guarantees**: A file that others can read or write, that belongs to another user, or
        that is reached through a link is refused before its content is used.

        Raises:
            SiteKeyError: It is missing, not safe, or not a private Ed25519 key.
        """
        return cls.from_pem(read_private_file(path), path)

    @classmethod
    def from_pem(cls, data: bytes, path: Path) -> "SiteKey":
        """The key that ``private_pem`` wrote; ``path`` is where it was read, for the error.

        Raises:
            SiteKeyError: It is not a private Ed25519 key.
        """
        try:
            private = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SiteKeyError(f"expected a private Ed25519 key in {path}, got no key") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise SiteKeyError(f"expected a private Ed25519 key in {path}, got another kind of key")
        return cls(private)

    def private_pem(self) -> bytes:
        """The private key in the clear, for a file of mode 0600."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def public_hex(self) -> str:
        """The public key: 32 bytes as lower-case hexadecimal digits."""
        return self._private.public_key().public_bytes_raw().hex()

    def sign(self, purpose: str, message: bytes) -> str:
        """Signs ``message`` for one purpose, such as ``ledger-entry``; hexadecimal digits."""
        return self._private.sign(_named(purpose, message)).hex()

    def sign_envelope(self, payload_type: str, payload: bytes) -> bytes:
        """Signs a payload as tools of others expect it: the 64 bytes of a DSSE signature.

        Its name is the payload's type, and no ``sign`` begins like it.

        Source: DSSE 1.0.2, protocol.md.
        """
        return self._private.sign(envelope_encoding(payload_type, payload))

    def __repr__(self) -> str:
        return f"SiteKey(public={self.public_hex[:16]}..., private=***)"


def verify_signature(public_hex: str, purpose: str, message: bytes, signature: str) -> None:
    """Checks a signature that ``SiteKey.sign`` made.

    **Guarantees**: Returns only for a signature by this key, over this message, for this purpose,
    written in lower-case digits: one signature has one form.

    Raises:
        SiteKeyError: It is not that.

    Source: RFC 8032.
    """
    try:
        public, given = bytes.fromhex(public_hex), bytes.fromhex(signature)
        if public.hex() != public_hex or given.hex() != signature:
            raise SiteKeyError("expected a key and a signature in lower-case digits, got another")
        Ed25519PublicKey.from_public_bytes(public).verify(given, _named(purpose, message))
    except (InvalidSignature, ValueError) as error:
        raise SiteKeyError(
            f"expected a signature by the key {public_hex[:16]}..., got another"
        ) from error


def envelope_encoding(payload_type: str, payload: bytes) -> bytes:
    """What a DSSE signature is over: its pre-authentication encoding.

    Source: DSSE 1.0.2, protocol.md.
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def verify_envelope(public_hex: str, payload_type: str, payload: bytes, signature: bytes) -> None:
    """Checks a DSSE signature.

    Raises:
        SiteKeyError: It is not this key's over this payload of this type.
    """
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))
        public.verify(signature, envelope_encoding(payload_type, payload))
    except (InvalidSignature, ValueError) as error:
        raise SiteKeyError(
            f"expected an envelope signed by the key {public_hex[:16]}..., got another"
        ) from error


def sign_document(key: SiteKey, purpose: str, message: WireMessage) -> str:
    """Signs a document, without its field ``signature`` where it has one."""
    return key.sign(purpose, _signed_part(message))


def verify_document(public_hex: str, purpose: str, message: WireMessage) -> None:
    """Checks the signature that a document bears in its field ``signature``.

    **Guarantees**: Returns only where the key signed this content for this purpose. Every field
    except the signature is covered, those that were left at their defaults too.

    Raises:
        IdentityError: It bears no signature, or another one.
    """
    signature = getattr(message, "signature", None)
    kind = type(message).__name__
    if not isinstance(signature, str):
        raise IdentityError(f"expected a signed {kind}, got one without a signature")
    try:
        verify_signature(public_hex, purpose, _signed_part(message), signature)
    except SiteKeyError as error:
        raise IdentityError(
            f"expected a {kind} signed by the key {public_hex[:16]}..., got another signature"
        ) from error


def read_private_file(path: Path) -> bytes:
    """Reads a key file.

    **Guarantees**: A file that others can read or write, that belongs to another user, or that
    is reached through a link is refused before its content is used.

    Raises:
        SiteKeyError: It is missing, not safe, or far too long for a key.
    """
    try:
        # The checks look at the open file, so that it cannot be exchanged in between.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise SiteKeyError(f"expected a key file at {path}, got: {error.strerror}") from error
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SiteKeyError(f"expected a key file at {path}, got a folder")
    with open(descriptor, "rb") as file:
        _check_private(path, os.fstat(file.fileno()))
        data = file.read(_MAX_PRIVATE_FILE_BYTES + 1)
    if len(data) > _MAX_PRIVATE_FILE_BYTES:
        raise SiteKeyError(f"expected a key in {path}, got over {_MAX_PRIVATE_FILE_BYTES} bytes")
    return data


def write_private_file(path: Path, data: bytes) -> None:
    """Makes a new file of mode 0600.

    **Guarantees**: Never overwrites. Others can read it at no moment. When this returns, the file
    lies on the disk; when it raises, there is none of it.

    Raises:
        SiteKeyError: Something is there already, or it cannot be written.
    """
    try:
        write_synced(path, data, exclusive=True)
    except FileExistsError as error:
        raise SiteKeyError(
            f"expected to write a new file {path}, got one that is there",
            hint="a key is never overwritten: move it away if you want another",
        ) from error
    except OSError as error:
        raise SiteKeyError(
            f"expected to write {path}, got: {error.strerror}",
            hint="check the folder, its owner and the disk's space",
        ) from error


def write_synced(path: Path, data: bytes, *, exclusive: bool) -> None:
    """Writes a file of mode 0600 that lies on the disk when this returns.

    Args:
        path: The file.
        data: Its content.
        exclusive: Refuse where the file exists, and put its name on the disk too; else
            overwrite what is there.

    Raises:
        OSError: It cannot be written; with ``exclusive``, nothing of it is left.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | (os.O_EXCL if exclusive else os.O_TRUNC)
    descriptor = os.open(path, flags, 0o600)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            _sync_folder(path.parent)
    except BaseException:
        if exclusive:
            path.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_private(path: Path, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise SiteKeyError(f"expected a regular file at {path}, got another kind")
    if status.st_uid != os.geteuid():
        raise SiteKeyError(
            f"expected {path} to belong to user {os.geteuid()}, got user {status.st_uid}",
            hint="run as the user who made the key",
        )
    if mode & 0o077:
        raise SiteKeyError(
            f"expected {path} to be readable by its owner only, got mode {mode:04o}",
            hint=f"chmod 600 {path}; if others could read it, make a new key",
        )


def _named(purpose: str, message: bytes) -> bytes:
    return b"cloister/" + purpose.encode("ascii") + b"\0" + message


def _signed_part(message: WireMessage) -> bytes:
    """What travels, without its signature."""
    return canonical_json(wire_form(message, without="signature"))
