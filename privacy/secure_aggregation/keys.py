"""The keys of one attempt: agreement, derivation, commitments, and sealed shares.

Everything that is derived is salted with the digest of the attempt's context and labelled with what
it is for and between whom, so that no key serves twice and no two parties that were told different
things have one in common.

Deliberately not here: signatures (``privacy.signing``), and the rule that an attempt seals and
masks once (the site's state machine): the nonces below are constant because each key is used once.

Source: RFC 7748 (X25519), RFC 5869 (HKDF), NIST SP 800-38D (GCM).
"""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from core.aggregation_messages import SHARE_BYTES, Adverts
from core.digests import canonical_json
from core.errors import CommitmentError, ShareUnopenedError, WeakKeyError
from core.messages import encode
from privacy.secure_aggregation.shamir import read_share, share_bytes

PROTOCOL: Final = "cloister-secagg/1"
KEY_BYTES: Final = 32
_NONCE: Final = bytes(12)
_FIELD: Final = 2**255 - 19


class KeyPair:
    """An X25519 key pair of one attempt.

    Guarantees:
        The private part is in no ``repr``.
    """

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        self.public_hex = private.public_key().public_bytes_raw().hex()

    @classmethod
    def generate(cls) -> "KeyPair":
        """A new pair from the operating system's generator."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def from_private(cls, private: bytes) -> "KeyPair":
        """The pair of 32 private bytes: new random ones, or those that shares gave back."""
        return cls(X25519PrivateKey.from_private_bytes(private))

    def private_bytes(self) -> bytes:
        """The private key, 32 bytes: to be dealt in shares."""
        return self._private.private_bytes_raw()

    def agree(self, peer_hex: str) -> bytes:
        """The secret that this key and a peer's public key agree on: 32 bytes, not yet a key.

        Guarantees:
            One public key has one form here, so that "no key twice" can be seen from the form.

        Raises:
            WeakKeyError: The peer's key is of small order, so that anyone knows the secret, or is
                not in its one form.
        """
        try:
            peer = bytes.fromhex(peer_hex)
            if int.from_bytes(peer, "little") >= _FIELD:
                raise WeakKeyError("expected a public key below 2^255 - 19, got another form")
            return self._private.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError as error:
            raise WeakKeyError(
                "expected a public key that agrees on a secret, got one that everyone agrees with"
            ) from error

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public_hex[:16]}..., private=***)"


@dataclass(frozen=True, repr=False)
class SharePair:
    """One receiver's shares of one site's two secrets."""

    seed: int
    """Of the seed of its own mask."""
    key: int
    """Of the private key of its pair masks."""

    def __repr__(self) -> str:
        return "SharePair(seed=***, key=***)"


@dataclass(frozen=True)
class Envelope:
    """What a sealed pair of shares is bound to."""

    context: bytes
    """Digest of the context."""
    adverts: bytes
    """``adverts_digest`` of those that the site was sent."""
    sender: str
    receiver: str


def derive(secret: bytes, context: bytes, *label: str) -> bytes:
    """A 32-byte key by HKDF-SHA256, salted with the context's digest, for one labelled use.

    Guarantees:
        Two different labels never give the same ``info``.
    """
    info = canonical_json([PROTOCOL, *label])
    return HKDF(SHA256(), KEY_BYTES, salt=context, info=info).derive(secret)


def pair_mask_key(agreed: bytes, context: bytes, site: str, peer: str) -> bytes:
    """The key of the mask that two sites share, whichever asks.

    Args:
        agreed: What their mask keys agree on.
        context: The context's digest.
        site: One of them.
        peer: The other one.
    """
    return derive(agreed, context, "pair-mask", *sorted((site, peer)))


def self_mask_key(seed: bytes, context: bytes, site: str) -> bytes:
    """The key of the mask that only ``site``'s own seed gives."""
    return derive(seed, context, "self-mask", site)


def seed_commitment(seed: bytes, context: bytes, site: str) -> str:
    """Binds ``site`` to its seed: 64 lower-case hexadecimal digits.

    Guarantees:
        Says nothing about the seed of 256 random bits; no other seed has it.
    """
    label = canonical_json([PROTOCOL, "seed-commitment", context.hex(), site])
    return hashlib.sha256(label + b"\0" + seed).hexdigest()


def check_seed(seed: bytes, commitment: str, context: bytes, site: str) -> None:
    """Checks a seed that was put together from its shares.

    Raises:
        CommitmentError: It is not the one that ``site`` committed to.
    """
    if not hmac.compare_digest(seed_commitment(seed, context, site), commitment):
        raise CommitmentError(f"expected the seed that {site!r} committed to, got another")


def check_mask_key(private: bytes, public_hex: str, site: str) -> KeyPair:
    """Checks a private key that was put together from its shares, and gives its pair.

    Raises:
        CommitmentError: It is not the one of the public key that ``site`` advertised.
    """
    pair = KeyPair.from_private(private)
    if pair.public_hex != public_hex:
        raise CommitmentError(f"expected the mask key that {site!r} advertised, got another")
    return pair


def adverts_digest(adverts: Adverts) -> bytes:
    """SHA-256 of the adverts as they travel: 32 bytes."""
    return hashlib.sha256(encode(adverts)).digest()


def seal_shares(agreed: bytes, envelope: Envelope, shares: SharePair) -> str:
    """Seals one peer's shares, as ``SealedShare.box``.

    Args:
        agreed: What the two sites' cipher keys agree on.
        envelope: What the box is bound to; of each envelope at most one box may be sealed.
        shares: What is in it.
    """
    plain = share_bytes(shares.seed) + share_bytes(shares.key)
    return AESGCM(_box_key(agreed, envelope)).encrypt(_NONCE, plain, _bound(envelope)).hex()


def open_shares(agreed: bytes, envelope: Envelope, box: str) -> SharePair:
    """Opens what ``seal_shares`` sealed.

    Guarantees:
        Returns only what the sender sealed for this receiver, this context and these adverts.

    Raises:
        ShareUnopenedError: It is not that, or holds no two shares.
    """
    try:
        plain = AESGCM(_box_key(agreed, envelope)).decrypt(
            _NONCE, bytes.fromhex(box), _bound(envelope)
        )
    except (InvalidTag, ValueError) as error:
        raise ShareUnopenedError(
            f"expected shares that {envelope.sender!r} sealed for {envelope.receiver!r} in this "
            "attempt, got a box that does not open"
        ) from error
    return SharePair(read_share(plain[:SHARE_BYTES]), read_share(plain[SHARE_BYTES:]))


def _box_key(agreed: bytes, envelope: Envelope) -> bytes:
    return derive(agreed, envelope.context, "share", envelope.sender, envelope.receiver)


def _bound(envelope: Envelope) -> bytes:
    return canonical_json(
        [
            PROTOCOL,
            "share",
            envelope.context.hex(),
            envelope.adverts.hex(),
            envelope.sender,
            envelope.receiver,
        ]
    )
