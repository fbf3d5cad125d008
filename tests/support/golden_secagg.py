"""What is frozen of secure aggregation's primitives: by the code, and by the naive one."""

import hashlib
from typing import Any

import numpy as np

from privacy.secure_aggregation import keys, masks, shamir
from tests.support import naive_secagg as naive
from tests.support.attempts import context

SITES = ("east", "north")
PLACES = (1, 2, 5, 256)
THRESHOLD = 3
WORDS = 12


def fixed(label: str, length: int = 32) -> bytes:
    """Bytes that are the same wherever they are asked for."""
    return hashlib.shake_256(label.encode()).digest(length)


def derived() -> dict[str, Any]:
    """Everything that follows from fixed secrets, by ``privacy.secure_aggregation``."""
    salt, (one, other) = context().digest(), SITES
    pairs = [keys.KeyPair.from_private(fixed(site)) for site in SITES]
    agreed = pairs[0].agree(pairs[1].public_hex)
    coefficients = iter([fixed("second power", 66), fixed("first power", 66)])
    shares = shamir.split(fixed("secret"), THRESHOLD, PLACES, lambda size: next(coefficients))
    envelope = keys.Envelope(salt, fixed("adverts"), one, other)
    mask = keys.pair_mask_key(agreed, salt, other, one)
    vector = np.zeros(WORDS, np.uint32)
    masks.add_mask(vector, mask, 1)
    return {
        "context": salt.hex(),
        "public-keys": [pair.public_hex for pair in pairs],
        "agreed": agreed.hex(),
        "pair-mask-key": mask.hex(),
        "self-mask-key": keys.self_mask_key(fixed("seed"), salt, one).hex(),
        "seed-commitment": keys.seed_commitment(fixed("seed"), salt, one),
        "shares": [shamir.share_bytes(share).hex() for share in shares],
        "box": keys.seal_shares(agreed, envelope, keys.SharePair(shares[0], shares[1])),
        "mask": vector.tolist(),
    }


def derived_naively() -> dict[str, Any]:
    """The same by ``naive_secagg``."""
    salt, (one, other) = context().digest(), SITES
    agreed = naive.x25519(fixed(one), naive.public_of(fixed(other)))
    powers = [
        int.from_bytes(fixed(label, 66), "big") % 2**521
        for label in ("first power", "second power")
    ]
    shares = naive.deal(fixed("secret"), powers, PLACES)
    mask = naive.labelled(agreed, salt, "pair-mask", one, other)
    return {
        "context": salt.hex(),
        "public-keys": [naive.public_of(fixed(site)).hex() for site in SITES],
        "agreed": agreed.hex(),
        "pair-mask-key": mask.hex(),
        "self-mask-key": naive.labelled(fixed("seed"), salt, "self-mask", one).hex(),
        "seed-commitment": naive.commitment(fixed("seed"), salt, one),
        "shares": [f"{share:0132x}" for share in shares],
        "box": naive.box(agreed, salt, fixed("adverts"), one, other, shares[:2]),
        "mask": naive.words(mask, WORDS),
    }
