"""What the coordinator and the sites say to each other in one attempt at secure aggregation.

Encoded and parsed by ``core.messages.encode`` and ``decode``. What the messages mean and who
checks what: docs/concepts/secure-aggregation.md.
"""

from typing import Annotated, Final, Literal

from pydantic import Field

from core.config_sections import Digest, Name
from core.messages import RunId, WireMessage
from core.wire.documents import PublicKey, Signature

SHARES: Final = "query.shares"
MASKED: Final = "query.masked"
CONFIRMATION: Final = "query.confirmation"
REVEAL: Final = "query.reveal"
EXCHANGES: Final = (SHARES, MASKED, CONFIRMATION, REVEAL)
"""Types of the messages that follow the training order; none bears arrays, one answer does."""
MASKED_ARRAY: Final = "masked"
"""Name of the one array in that answer."""
MAX_COHORT: Final = 256
SHARE_BYTES: Final = 66
"""An integer below 2^521 - 1, big-endian."""
BOX_BYTES: Final = 2 * SHARE_BYTES + 16
"""Two shares, sealed with AES-GCM."""

Box = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * BOX_BYTES}}}$", repr=False)]
Share = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * SHARE_BYTES}}}$", repr=False)]
Names = Annotated[tuple[Name, ...], Field(max_length=MAX_COHORT)]


class AttemptMessage(WireMessage):
    """Names the attempt that a message belongs to."""

    run_id: RunId
    """The run."""
    server_round: int = Field(ge=1)
    """The round."""
    attempt: int = Field(ge=1)
    """The attempt."""
    context: Digest
    """Digest of everything that all parties must have been told alike."""


class Advert(AttemptMessage):
    """A site's fresh keys; it rides on the reply to the training order."""

    site: Name
    """Whose."""
    cipher_key: PublicKey
    """X25519: peers derive from it the key that seals shares."""
    mask_key: PublicKey
    """X25519: peers derive from it the seed of a pair's mask."""
    seed_commitment: Digest
    """Binds the site to the seed of its own mask."""
    signature: Signature
    """By the node key over this advert without this field, purpose ``secagg-advert``."""


class Adverts(AttemptMessage):
    """To each site: the adverts of all that take part (U1), by site."""

    adverts: Annotated[tuple[Advert, ...], Field(max_length=MAX_COHORT)]
    """One for each site."""


class SealedShare(WireMessage):
    """Two shares for one peer, or from one."""

    peer: Name
    """To whom, on the way up; from whom, on the way down."""
    box: Box
    """AES-GCM over the share of the sender's seed, then that of its mask key."""


class SealedShares(AttemptMessage):
    """From a site: its shares for all of U1 but itself. To a site: those addressed to it, from
    all that dealt (U2) but itself."""

    site: Name
    """The site that dealt, or that these are addressed to."""
    shares: Annotated[tuple[SealedShare, ...], Field(max_length=MAX_COHORT)]
    """By peer."""


class MaskedInput(AttemptMessage):
    """Says what the masked vector is that travels with it."""

    site: Name
    """Whose."""
    digest: Digest
    """``arrays_digest`` of the arrays of this message, as they travel."""
    signature: Signature
    """By the node key over this message without this field, purpose ``secagg-masked``."""


class Survivors(AttemptMessage):
    """To a site: whose shares were dealt and whose masked vectors came whole."""

    sharers: Names
    """U2, by name."""
    survivors: Names
    """U3, by name."""


class Confirmation(AttemptMessage):
    """A site's one signature for one pair of U2 and U3."""

    site: Name
    """Whose."""
    adverts_digest: Digest
    """SHA-256 of the canonical JSON of the ``Adverts`` that it was sent: the keys at stake."""
    sharers: Names
    """U2."""
    survivors: Names
    """U3."""
    signature: Signature
    """By the node key over this message without this field, purpose ``secagg-confirmation``."""


class SignedBy(WireMessage):
    """A confirmation's signature; what it signs stands in ``Survivors``."""

    site: Name
    """Whose."""
    signature: Signature
    """As in ``Confirmation``."""


class Confirmations(AttemptMessage):
    """To a site: that enough others were told the same U2 and U3."""

    sharers: Names
    """U2."""
    survivors: Names
    """U3."""
    signatures: Annotated[tuple[SignedBy, ...], Field(max_length=MAX_COHORT)]
    """By site."""


class RevealedShare(WireMessage):
    """One share of one secret of one peer."""

    owner: Name
    """Whose secret."""
    kind: Literal["seed", "key"]
    """``seed`` for a survivor, ``key`` for a site that dropped out after it dealt."""
    share: Share
    """The share."""


class Revealed(AttemptMessage):
    """From a site: for each site of U2 one share, never two kinds for one peer."""

    site: Name
    """Who reveals."""
    shares: Annotated[tuple[RevealedShare, ...], Field(max_length=MAX_COHORT)]
    """By owner."""


class Transcript(AttemptMessage):
    """What the coordinator opened: it goes with the next order and into everyone's records."""

    sharers: Names
    """U2."""
    survivors: Names
    """U3."""
    adverts_digest: Digest
    """As in ``Confirmation``."""
    sum_digest: Digest
    """``arrays_digest`` of the opened sum, int32."""
    signatures: Annotated[tuple[SignedBy, ...], Field(max_length=MAX_COHORT)]
    """The confirmations."""
