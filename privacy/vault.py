"""Sealing what lies on the disk: AES-256-GCM under one 32-byte key.

Layout of what is sealed: magic (8 bytes), salt (32), commitment (32), then segments of 1 MiB and
a tag of 16 bytes each; the last is shorter or as long, and there is always one.

Deliberately not protected: which of several sealed versions is the newest. A thief who can write
to the disk can put an older one back; what must not go back (ledger, roster) says so itself.
"""

import hmac
import os
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from core.errors import SiteKeyError, VaultError
from privacy.signing import read_private_file, write_private_file

KEY_VARIABLE: Final = "CLOISTER_VAULT_KEY"

_MAGIC: Final = b"CLVAULT1"
_KEY_BYTES: Final = 32
_SALT_BYTES: Final = 32
_COMMITMENT_BYTES: Final = 32
_HEADER_BYTES: Final = len(_MAGIC) + _SALT_BYTES + _COMMITMENT_BYTES
_TAG_BYTES: Final = 16
_SEGMENT_BYTES: Final = 1 << 20
_SEALED_SEGMENT_BYTES: Final = _SEGMENT_BYTES + _TAG_BYTES
_HEX_KEY: Final = re.compile(rb"[0-9a-f]{64}\n?")
_PURPOSE: Final = re.compile(r"[ -~]{1,256}")


class Vault:
    """Seals and opens under one key.

    **Guarantees**: What was sealed opens only whole, unchanged, under the same key and for the same
    purpose; otherwise nothing of it comes out. Each message has a key of its own, derived with
    256 random bits, so that no two nonces meet under one key, however much is sealed. The key is
    in no ``repr`` and in no message.

    Source: the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizar, "Online
    Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance" (2015), section 5, over
    AES-256-GCM (NIST SP 800-38D); RFC 5869 for the keys, with a part of its output as commitment
    to the key, which GCM alone does not give.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != _KEY_BYTES:
            raise VaultError(f"expected a vault key of {_KEY_BYTES} bytes, got {len(key)}")
        self._key = key

    @classmethod
    def load(cls, path: Path | None) -> "Vault":
        """Takes the key from the environment, or else from a file.

        **Guarantees**: A file is refused as ``privacy.signing.read_private_file`` does.

        Args:
            path: The key file, 64 hexadecimal digits; not read where the environment variable
                ``CLOISTER_VAULT_KEY`` holds the key.

        Raises:
            VaultError: There is no key, or it is not safe, or not 32 bytes.
        """
        from_environment = os.environ.get(KEY_VARIABLE)
        if from_environment is not None:
            return cls(_parse(os.fsencode(from_environment), KEY_VARIABLE))
        if path is None:
            raise VaultError(f"expected a vault key in {KEY_VARIABLE} or in a file, got none")
        try:
            return cls(_parse(read_private_file(path), str(path)))
        except SiteKeyError as error:
            raise VaultError(error.message, hint=error.hint) from error

    @classmethod
    def create(cls, path: Path) -> "Vault":
        """A new random key, in a new file of mode 0600.

        Raises:
            VaultError: A file is there already, or it cannot be written.
        """
        key = os.urandom(_KEY_BYTES)
        try:
            write_private_file(path, key.hex().encode("ascii") + b"\n")
        except SiteKeyError as error:
            raise VaultError(error.message, hint=error.hint) from error
        return cls(key)

    def seal(self, purpose: str, data: bytes | bytearray | memoryview) -> bytes:
        """Encrypts ``data`` for one purpose, such as ``checkpoint``.

        Raises:
            VaultError: ``purpose`` is empty, too long or not printable ASCII.
        """
        salt = os.urandom(_SALT_BYTES)
        cipher, commitment = self._derive(purpose, salt)
        view = memoryview(data).cast("B")
        segments = max(1, -(-len(view) // _SEGMENT_BYTES))
        # A BytesIO gives its bytes away without another copy.
        sealed = BytesIO(bytes(_HEADER_BYTES + len(view) + segments * _TAG_BYTES))
        with sealed.getbuffer() as buffer:
            buffer[:_HEADER_BYTES] = _MAGIC + salt + commitment
            with buffer[_HEADER_BYTES:] as room:
                for nonce, clear, closed in _segments(len(view), segments):
                    cipher.encrypt_into(nonce, view[clear], None, room[closed])
        return sealed.getvalue()

    def open(self, purpose: str, sealed: bytes | bytearray | memoryview) -> bytes:
        """Decrypts what ``seal`` made for the same purpose.

        Raises:
            VaultError: It was sealed with another key or for another purpose, or it was changed,
                cut or lengthened.
        """
        view = memoryview(sealed).cast("B")
        if len(view) < _HEADER_BYTES + _TAG_BYTES or bytes(view[: len(_MAGIC)]) != _MAGIC:
            raise VaultError(
                f"expected sealed data for {purpose!r}, got {len(view)} bytes that are not"
            )
        salt = view[len(_MAGIC) : len(_MAGIC) + _SALT_BYTES]
        cipher, expected = self._derive(purpose, bytes(salt))
        if not hmac.compare_digest(view[len(_MAGIC) + _SALT_BYTES : _HEADER_BYTES], expected):
            raise VaultError(
                f"expected data sealed for {purpose!r} with this key, got another key or purpose",
                hint=f"check the vault's key file and {KEY_VARIABLE}",
            )
        return self._open_segments(purpose, cipher, view[_HEADER_BYTES:])

    def _open_segments(self, purpose: str, cipher: AESGCM, room: memoryview) -> bytes:
        segments = -(-len(room) // _SEALED_SEGMENT_BYTES)
        size = len(room) - segments * _TAG_BYTES
        # Else the last segment holds less than its tag, or nothing although others precede it.
        if segments != max(1, -(-size // _SEGMENT_BYTES)):
            raise VaultError(_changed(purpose))
        data = BytesIO(bytes(size))
        try:
            with data.getbuffer() as target:
                for nonce, clear, closed in _segments(size, segments):
                    cipher.decrypt_into(nonce, room[closed], None, target[clear])
        except InvalidTag as error:
            raise VaultError(_changed(purpose)) from error
        return data.getvalue()

    def _derive(self, purpose: str, salt: bytes) -> tuple[AESGCM, bytes]:
        """The message's own cipher, and the commitment to its key."""
        if not _PURPOSE.fullmatch(purpose):
            raise VaultError(
                f"expected a purpose of 1 to 256 printable characters, got {purpose!r}"
            )
        derived = HKDF(
            algorithm=SHA256(),
            length=_KEY_BYTES + _COMMITMENT_BYTES,
            salt=salt,
            info=b"cloister/vault/1\0" + purpose.encode("ascii"),
        ).derive(self._key)
        return AESGCM(derived[:_KEY_BYTES]), derived[_KEY_BYTES:]

    def __repr__(self) -> str:
        return "Vault(key=***)"


def _segments(size: int, segments: int) -> Iterator[tuple[bytes, slice, slice]]:
    """For each segment: its nonce, and where it lies in the clear and in the sealed data."""
    for index in range(segments):
        is_last = index == segments - 1
        nonce = index.to_bytes(11, "big") + (b"\1" if is_last else b"\0")
        length = size - index * _SEGMENT_BYTES if is_last else _SEGMENT_BYTES
        start, sealed_start = index * _SEGMENT_BYTES, index * _SEALED_SEGMENT_BYTES
        yield (
            nonce,
            slice(start, start + length),
            slice(sealed_start, sealed_start + length + _TAG_BYTES),
        )


def _parse(text: bytes, origin: str) -> bytes:
    if not _HEX_KEY.fullmatch(text):
        raise VaultError(
            f"expected 64 hexadecimal digits in {origin}, got something else",
            hint="`openssl rand -hex 32` makes a key; without the right one nothing opens",
        )
    return bytes.fromhex(text.decode("ascii"))


def _changed(purpose: str) -> str:
    return f"expected data for {purpose!r} as it was sealed, got it changed, cut or lengthened"
