"""A site's Ed25519 key and its file. What is signed is named, so no signature serves twice.

Deliberately not checked here: whose key it is. That is the ledger's first entry's, or a roster's.
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

from core.errors import SiteKeyError

# A key file holds about 120 bytes.
_MAX_KEY_FILE_BYTES: Final = 4096


class SiteKey:
    """A private key that signs for one site.

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
        data = _read_private_file(path)
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


def _named(purpose: str, message: bytes) -> bytes:
    return b"cloister/" + purpose.encode("ascii") + b"\0" + message


def _read_private_file(path: Path) -> bytes:
    try:
        # The checks look at the open file, so that it cannot be exchanged in between.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise SiteKeyError(f"expected a key file at {path}, got: {error.strerror}") from error
    with open(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
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
                hint=f"chmod 600 {path}; if others could read it, start a new ledger",
            )
        return file.read(_MAX_KEY_FILE_BYTES)
