"""One example of each message of an attempt at secure aggregation, every field set."""

from core.aggregation_messages import (
    BOX_BYTES,
    SHARE_BYTES,
    Advert,
    Adverts,
    AttemptMessage,
    Confirmation,
    Confirmations,
    MaskedInput,
    Revealed,
    RevealedShare,
    SealedShare,
    SealedShares,
    SignedBy,
    Survivors,
    Transcript,
)
from core.messages import AggregationOrder, WireMessage

_RUN, _CONTEXT = "0123456789abcdef", "c" * 64
_SHARERS, _SURVIVORS = ("east", "north", "south"), ("east", "north")
_SIGNED = (SignedBy(site="east", signature="1" * 128), SignedBy(site="north", signature="2" * 128))

ORDER = AggregationOrder(
    protocol="cloister-secagg/1",
    nonce="a" * 64,
    roster_epoch=3,
    roster_digest="b" * 64,
    members=_SHARERS,
    dimension=1000,
    deadline="2026-01-31T12:00:00Z",
)
_NAMES = AttemptMessage(run_id=_RUN, server_round=4, attempt=2, context=_CONTEXT)
_ATTEMPT = _NAMES.model_dump()
_ADVERT = Advert(
    **_ATTEMPT,
    site="north",
    cipher_key="d" * 64,
    mask_key="e" * 64,
    seed_commitment="f" * 64,
    signature="3" * 128,
)
_BOX = SealedShare(peer="south", box="4" * (2 * BOX_BYTES))
_SHARE = RevealedShare(owner="south", kind="key", share="5" * (2 * SHARE_BYTES))

AGGREGATION_DOCUMENTS: tuple[WireMessage, ...] = (
    _NAMES,
    _ADVERT,
    Adverts(**_ATTEMPT, adverts=(_ADVERT,)),
    _BOX,
    SealedShares(**_ATTEMPT, site="north", shares=(_BOX,)),
    MaskedInput(**_ATTEMPT, site="north", digest="6" * 64, signature="7" * 128),
    Survivors(**_ATTEMPT, sharers=_SHARERS, survivors=_SURVIVORS),
    Confirmation(
        **_ATTEMPT,
        site="north",
        adverts_digest="0" * 64,
        sharers=_SHARERS,
        survivors=_SURVIVORS,
        signature="8" * 128,
    ),
    *_SIGNED[:1],
    Confirmations(**_ATTEMPT, sharers=_SHARERS, survivors=_SURVIVORS, signatures=_SIGNED),
    _SHARE,
    Revealed(**_ATTEMPT, site="north", shares=(_SHARE,)),
    Transcript(
        **_ATTEMPT,
        sharers=_SHARERS,
        survivors=_SURVIVORS,
        adverts_digest="0" * 64,
        sum_digest="9" * 64,
        signatures=_SIGNED,
    ),
)
