import os
from dataclasses import replace
from typing import Any

import pytest

from core.aggregation_messages import BOX_BYTES, Advert, Adverts
from core.errors import CommitmentError, ShareUnopenedError, WeakKeyError
from privacy.secure_aggregation.keys import (
    Envelope,
    KeyPair,
    SharePair,
    adverts_digest,
    check_mask_key,
    check_seed,
    derive,
    open_shares,
    pair_mask_key,
    seal_shares,
    seed_commitment,
    self_mask_key,
)
from privacy.secure_aggregation.shamir import PRIME
from tests.support import naive_secagg as naive

CONTEXT, AGREED, SEED = bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 96))
ENVELOPE = Envelope(CONTEXT, bytes(range(96, 128)), "north", "south")
SHARES = SharePair(seed=5, key=PRIME - 1)

# Every clamped scalar takes these to zero. Source: RFC 7748, section 7; cr.yp.to/ecdh.html.
SMALL_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ec" + "ff" * 30 + "7f",
]


def advert(site: str, **changes: Any) -> Advert:
    values = {
        "run_id": "0123456789abcdef",
        "server_round": 4,
        "attempt": 1,
        "context": CONTEXT.hex(),
        "site": site,
        "cipher_key": "1" * 64,
        "mask_key": "2" * 64,
        "seed_commitment": "3" * 64,
        "signature": "4" * 128,
    }
    return Advert(**(values | changes))


def adverts(*members: Advert) -> Adverts:
    return Adverts(
        run_id="0123456789abcdef",
        server_round=4,
        attempt=1,
        context=CONTEXT.hex(),
        adverts=members,
    )


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_a_key_that_everyone_agrees_with_is_refused(key: str) -> None:
    with pytest.raises(WeakKeyError, match=r"got one that everyone agrees with"):
        KeyPair.generate().agree(key)


@pytest.mark.parametrize(
    "form", [2**255 - 19, 2**255 - 18, 2**255 - 19 + 9, 2**255 - 1, 2**255 + 9, 2**256 - 1]
)
def test_a_public_key_has_one_form(form: int) -> None:
    with pytest.raises(WeakKeyError, match=r"expected a public key below 2\^255 - 19"):
        KeyPair.generate().agree(form.to_bytes(32, "little").hex())


@pytest.mark.parametrize("text", ["", "09", "09" * 31, "zz" * 32])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(WeakKeyError):
        KeyPair.generate().agree(text)


def test_two_sites_agree_and_a_third_does_not() -> None:
    one, other, third = (KeyPair.generate() for _ in range(3))
    assert one.agree(other.public_hex) == other.agree(one.public_hex)
    assert one.agree(third.public_hex) != one.agree(other.public_hex)


def test_a_pair_is_fresh_and_comes_back_from_its_private_key() -> None:
    one, other = KeyPair.generate(), KeyPair.generate()
    assert one.public_hex != other.public_hex
    assert KeyPair.from_private(one.private_bytes()).public_hex == one.public_hex


def test_no_text_shows_a_secret() -> None:
    pair = KeyPair.from_private(SEED)
    assert repr(pair) == f"KeyPair(public={pair.public_hex[:16]}..., private=***)"
    assert f"{SharePair(seed=1234567, key=7654321)}" == "SharePair(seed=***, key=***)"


def test_keys_equal_those_of_the_naive_implementation() -> None:
    for _ in range(20):
        secret, salt = os.urandom(32), os.urandom(32)
        assert self_mask_key(secret, salt, "a") == naive.labelled(secret, salt, "self-mask", "a")
        pair = naive.labelled(secret, salt, "pair-mask", "a", "b")
        assert pair_mask_key(secret, salt, "b", "a") == pair
        assert seed_commitment(secret, salt, "a") == naive.commitment(secret, salt, "a")


def test_every_use_of_a_secret_has_a_key_of_its_own() -> None:
    other = bytes(31) + b"\1"
    found = {
        pair_mask_key(AGREED, CONTEXT, "north", "south"),
        pair_mask_key(AGREED, CONTEXT, "north", "west"),
        pair_mask_key(AGREED, other, "north", "south"),
        pair_mask_key(other, CONTEXT, "north", "south"),
        self_mask_key(AGREED, CONTEXT, "north"),
        self_mask_key(AGREED, CONTEXT, "south"),
        self_mask_key(AGREED, other, "north"),
        derive(AGREED, CONTEXT, "share", "north", "south"),
        derive(AGREED, CONTEXT, "share", "south", "north"),
        derive(AGREED, CONTEXT, "share", "north,south"),
        derive(AGREED, CONTEXT, "share", 'north","south'),
        derive(AGREED, CONTEXT, "sharenorth", "south"),
        derive(AGREED, CONTEXT),
    }
    assert len(found) == 13
    assert {len(key) for key in found} == {32}


def test_both_sites_of_a_pair_derive_the_same_mask() -> None:
    one = pair_mask_key(AGREED, CONTEXT, "north", "south")
    assert one == pair_mask_key(AGREED, CONTEXT, "south", "north")


def test_a_commitment_is_to_one_seed_of_one_site_in_one_context() -> None:
    commitment = seed_commitment(SEED, CONTEXT, "north")
    check_seed(SEED, commitment, CONTEXT, "north")
    for seed, context, site in (
        (AGREED, CONTEXT, "north"),
        (SEED, AGREED, "north"),
        (SEED, CONTEXT, "south"),
    ):
        with pytest.raises(CommitmentError, match=r"expected the seed that '.*' committed to"):
            check_seed(seed, commitment, context, site)


def test_only_the_private_key_of_the_advertised_one_is_taken() -> None:
    pair = KeyPair.generate()
    assert check_mask_key(pair.private_bytes(), pair.public_hex, "north").agree(
        KeyPair.from_private(SEED).public_hex
    ) == pair.agree(KeyPair.from_private(SEED).public_hex)
    with pytest.raises(CommitmentError, match=r"expected the mask key that 'north' advertised"):
        check_mask_key(SEED, pair.public_hex, "north")


def test_shares_come_out_of_their_box() -> None:
    box = seal_shares(AGREED, ENVELOPE, SHARES)
    assert len(box) == 2 * BOX_BYTES
    assert open_shares(AGREED, ENVELOPE, box) == SHARES


def test_boxes_equal_those_of_the_naive_implementation() -> None:
    for _ in range(5):
        agreed = os.urandom(32)
        envelope = Envelope(os.urandom(32), os.urandom(32), "a", "b")
        pair = SharePair(*(int.from_bytes(os.urandom(65), "big") for _ in range(2)))
        assert seal_shares(agreed, envelope, pair) == naive.box(
            agreed, envelope.context, envelope.adverts, "a", "b", (pair.seed, pair.key)
        )


@pytest.mark.parametrize(
    "change",
    [
        {"context": bytes(32)},
        {"adverts": bytes(32)},
        {"sender": "west"},
        {"receiver": "west"},
        {"sender": "south", "receiver": "north"},
    ],
)
def test_a_box_opens_only_for_what_it_was_sealed_for(change: dict[str, Any]) -> None:
    box = seal_shares(AGREED, ENVELOPE, SHARES)
    with pytest.raises(ShareUnopenedError, match=r"got a box that does not open"):
        open_shares(AGREED, replace(ENVELOPE, **change), box)


def test_a_box_does_not_open_with_another_secret() -> None:
    box = seal_shares(AGREED, ENVELOPE, SHARES)
    with pytest.raises(ShareUnopenedError, match=r"that 'north' sealed for 'south'"):
        open_shares(SEED, ENVELOPE, box)


def test_a_box_with_any_bit_turned_does_not_open() -> None:
    box = bytes.fromhex(seal_shares(AGREED, ENVELOPE, SHARES))
    for place in range(len(box)):
        turned = bytearray(box)
        turned[place] ^= 1 << place % 8
        with pytest.raises(ShareUnopenedError):
            open_shares(AGREED, ENVELOPE, turned.hex())


@pytest.mark.parametrize("box", ["", "00" * 15, "00" * BOX_BYTES, "zz" * BOX_BYTES])
def test_what_is_no_box_is_refused(box: str) -> None:
    with pytest.raises(ShareUnopenedError, match=r"got a box that does not open"):
        open_shares(AGREED, ENVELOPE, box)


@pytest.mark.parametrize(
    ("shares", "words"),
    [((5, PRIME), r"in the field"), ((2**528 - 1, 5), r"in the field"), ((5,), r"of 66 bytes")],
)
def test_a_good_box_with_bad_shares_is_refused(shares: tuple[int, ...], words: str) -> None:
    box = naive.box(AGREED, CONTEXT, ENVELOPE.adverts, "north", "south", shares)
    with pytest.raises(ShareUnopenedError, match=words):
        open_shares(AGREED, ENVELOPE, box)


def test_the_digest_of_the_adverts_covers_every_one_whole() -> None:
    north, south = advert("north"), advert("south", mask_key="5" * 64)
    found = {
        adverts_digest(adverts(*members))
        for members in (
            (north, south),
            (south, north),
            (north,),
            (north, advert("south")),
            (north, advert("south", mask_key="5" * 64, signature="5" * 128)),
        )
    }
    assert len(found) == 5
