"""What a site may send in place of its honest answers under secure aggregation."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from core.aggregation_messages import (
    CONFIRMATION,
    MASKED,
    MASKED_ARRAY,
    REVEAL,
    SHARES,
    Advert,
    Confirmation,
    MaskedInput,
    Revealed,
    RevealedShare,
    SealedShare,
    SealedShares,
)
from core.digests import arrays_digest
from core.messages import Refusal, TrainReply, decode, encode
from privacy.secure_aggregation.checks import sign
from tests.support.secure_federation import (
    Answer,
    Between,
    SecureFederation,
    changed,
    document,
    masked_values,
    with_values,
)

LIAR = "cow"
Make = Callable[[SecureFederation], Between]


def _says(name: str, kind: Any, **changes: Any) -> Make:
    return lambda federation: document(name, kind, **changes)


def _extra(content: RecordDict) -> RecordDict:
    content["more"] = ConfigRecord({"more": b"{}"})
    return content


def _without(name: str) -> Make:
    def change(content: RecordDict) -> RecordDict:
        del content[name]
        return content

    return lambda federation: changed(change)


def _vector(change: Callable[[Any], Any]) -> Make:
    """Another vector under the digest of the honest one."""
    return lambda federation: changed(lambda c: with_values(c, change(masked_values(c))))


def _signed_vector(change: Callable[[Any], Any]) -> Make:
    """Another vector, with its own digest and the liar's good signature."""

    def make(federation: SecureFederation) -> Between:
        standing = federation.sites[LIAR].standing
        assert standing is not None

        def lie(content: RecordDict) -> RecordDict:
            values = change(masked_values(content))
            said = decode(MaskedInput, content["masked"]["masked"])  # type: ignore[index]
            digest = arrays_digest({MASKED_ARRAY: values})
            signed = sign(standing.node_key(), said.model_copy(update={"digest": digest}))
            content["masked"] = ConfigRecord({"masked": encode(signed)})
            return with_values(content, values)

        return changed(lie)

    return make


def _garbage(values: Any) -> Any:
    return np.random.default_rng(9).integers(0, 2**32, values.shape, np.uint32)


def refuses(code: str) -> Make:
    """It does what it is asked, and says no."""

    def lie(message: Message, answer: Answer) -> Message:
        answer()
        said = next(iter(message.content.config_records.values()))
        asked = _decoded(next(iter(said.values())))
        refusal = Refusal(
            run_id=asked["run-id"],
            server_round=asked["server-round"],
            site=LIAR,
            code=code,
            message="see the site's own log",
        )
        content = RecordDict({"refusal": ConfigRecord({"refusal": encode(refusal)})})
        return Message(content, reply_to=message)

    return lambda federation: lie


def _decoded(data: object) -> dict[str, Any]:
    """A document as it travels."""
    assert isinstance(data, bytes)
    fields: dict[str, Any] = json.loads(data)
    return fields


def other_boxes(*victims: str) -> Callable[[Any], Any]:
    """Boxes that do not open: a bit of their seal is another one."""

    def shares(dealt: SealedShares) -> tuple[SealedShare, ...]:
        return tuple(
            SealedShare(peer=each.peer, box=_flipped(each.box)) if each.peer in victims else each
            for each in dealt.shares
        )

    return shares


def _flipped(digits: str) -> str:
    return f"{digits[:-2]}{int(digits[-2:], 16) ^ 1:02x}"


def _other_shares(revealed: Revealed) -> tuple[RevealedShare, ...]:
    return tuple(
        RevealedShare(owner=s.owner, kind=s.kind, share="00" + s.share[4:] + "01")
        for s in revealed.shares
    )


# Step, lie, and what the record says of the liar.
NAMED: dict[str, tuple[str, Make, str]] = {
    "an advert that nobody signed": (
        "train",
        _says("advert", Advert, signature="0" * 128),
        "bad-signature: expected Advert signed by cow, got another signature",
    ),
    "an advert for another": (
        "train",
        _says("advert", Advert, site="ant"),
        "expected Advert of cow, got that of ant",
    ),
    "an advert of another attempt": (
        "train",
        _says("advert", Advert, attempt=7),
        "context-mismatch: expected Advert of run",
    ),
    "no advert": ("train", _without("advert"), "expected the records reply, advert, got 'reply'"),
    "another round": ("train", _says("reply", TrainReply, server_round=9), "server_round 1, got 9"),
    "more than it was asked for": (
        "train",
        lambda federation: changed(_extra),
        "expected the records reply, advert, got 'advert', 'more', 'reply'",
    ),
    "shares for fewer": (
        SHARES,
        _says("shares", SealedShares, shares=lambda dealt: dealt.shares[1:]),
        "unknown-member: expected shares for each of the other 4 sites, got others",
    ),
    "shares in another's name": (
        SHARES,
        _says("shares", SealedShares, site="bee"),
        "expected SealedShares of cow, got that of bee",
    ),
    "another vector than its digest": (
        MASKED,
        _vector(lambda values: values + np.uint32(1)),
        "expected arrays of the digest that came with them",
    ),
    "a shorter vector": (
        MASKED,
        _vector(lambda values: values[:-1].copy()),
        "expected masked of shape",
    ),
    "a vector of another kind": (
        MASKED,
        _vector(lambda values: values.astype(np.float32)),
        "expected masked as uint32",
    ),
    "a vector that it did not sign": (
        MASKED,
        _says("masked", MaskedInput, signature="1" * 128),
        "bad-signature: expected MaskedInput signed by cow",
    ),
    "no vector": (MASKED, _without("arrays"), "expected the records masked, arrays, got 'masked'"),
    "no word about its vector": (
        MASKED,
        _without("masked"),
        "expected the records masked, arrays, got 'arrays'",
    ),
}
# These come when the sum holds the liar's update: it counts, and the log names the liar.
AFTERWARDS: dict[str, tuple[str, Make, str]] = {
    "it confirms others": (
        CONFIRMATION,
        _says("confirmation", Confirmation, survivors=("ant", "bee", "cow", "dog")),
        "confirmation: expected a confirmation of the same survivors, got one of others",
    ),
    "it signs nothing": (
        CONFIRMATION,
        _says("confirmation", Confirmation, signature="2" * 128),
        "bad-signature: expected Confirmation signed by cow",
    ),
    "it reveals fewer shares": (
        REVEAL,
        _says("revealed", Revealed, shares=lambda said: said.shares[1:]),
        "survivors: expected one share of the right kind for each site, got others",
    ),
    "it reveals the other kind": (
        REVEAL,
        _says(
            "revealed",
            Revealed,
            shares=lambda said: tuple(
                s.model_copy(update={"kind": "key"}) if s.owner == "ant" else s for s in said.shares
            ),
        ),
        "survivors: expected one share of the right kind for each site, got others",
    ),
    "it refuses to reveal": (REVEAL, refuses("policy-refused"), "policy-refused"),
}
# What spoils the whole attempt: nothing is opened, and nobody can tell who it was.
SPOILED: dict[str, tuple[str, Make, str]] = {
    "a garbage vector of its own": (
        MASKED,
        _signed_vector(_garbage),
        "sum-norm: expected a sum of norm",
    ),
    "shares that are none": (
        REVEAL,
        _says("revealed", Revealed, shares=_other_shares),
        "commitment: expected",
    ),
    "shares that nobody can open": (
        SHARES,
        _says("shares", SealedShares, shares=other_boxes("ant", "bee", "dog", "eel")),
        "cohort-too-small: expected at least 4",
    ),
}
