"""The frozen attempts, read as another implementation would read them."""

import json
from pathlib import Path
from typing import Any

import pytest

from core import aggregation_messages
from core.digests import canonical_json, sha256_hex
from core.messages import decode, encode
from privacy.signing import verify_signature
from tests.golden.regenerate import FOLDER, golden_files
from tests.support import naive_secagg as naive
from tests.support.golden_attempts import ATTEMPTS

PURPOSES = {
    "Advert": "secagg-advert",
    "MaskedInput": "secagg-masked",
    "Confirmation": "secagg-confirmation",
}


def path_of(file: str) -> Path:
    return FOLDER / "secure_aggregation" / file


@pytest.fixture(params=ATTEMPTS)
def attempt(request: pytest.FixtureRequest) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path_of(request.param).read_bytes())
    return document


def said(attempt: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [entry["message"] for entry in attempt["messages"] if entry["kind"] == kind]


def secrets_of(site: dict[str, Any]) -> naive.Secrets:
    cipher, mask, seed = (bytes.fromhex(drawn) for drawn in site["random"][:3])
    return naive.Secrets(seed=seed, cipher_key=cipher, mask_key=mask)


@pytest.mark.parametrize("file", ATTEMPTS)
def test_what_was_frozen_still_comes_out(file: str) -> None:
    assert path_of(file).read_bytes() == golden_files()[path_of(file)]


def test_every_message_parses_and_is_canonical(attempt: dict[str, Any]) -> None:
    for entry in attempt["messages"]:
        kind = getattr(aggregation_messages, entry["kind"])
        payload = canonical_json(entry["message"])
        assert encode(decode(kind, payload)) == payload


def test_every_signature_is_over_what_the_description_says(attempt: dict[str, Any]) -> None:
    checked = 0
    for entry in attempt["messages"]:
        if entry["kind"] in PURPOSES:
            message = dict(entry["message"])
            signature = message.pop("signature")
            public = attempt["sites"][message["site"]]["node-public-key"]
            verify_signature(public, PURPOSES[entry["kind"]], canonical_json(message), signature)
            checked += 1
    assert checked >= 9


def test_keys_commitments_and_boxes_follow_from_what_was_drawn(attempt: dict[str, Any]) -> None:
    context = naive.context_digest(attempt["context"]["fields"])
    assert context.hex() == attempt["context"]["digest"]
    roster = [member["name"] for member in attempt["roster"]["members"]]
    adverts = said(attempt, "Adverts")[0]
    sites, cohort = attempt["sites"], [advert["site"] for advert in adverts["adverts"]]
    digest = bytes.fromhex(sha256_hex(canonical_json(adverts)))
    for advert in said(attempt, "Advert"):
        own = secrets_of(sites[advert["site"]])
        assert advert["cipher-key"] == naive.public_of(own.cipher_key).hex()
        assert advert["mask-key"] == naive.public_of(own.mask_key).hex()
        assert advert["seed-commitment"] == naive.commitment(own.seed, context, advert["site"])
    places = [roster.index(name) + 1 for name in cohort]
    powers = 2 * len(cohort) // 3
    for name in cohort:
        own = secrets_of(sites[name])
        drawn = [int(text, 16) % 2**521 for text in sites[name]["random"][3:]]
        assert len(drawn) == 2 * powers
        # The highest power was drawn first.
        seeds = naive.deal(own.seed, drawn[:powers][::-1], places)
        keys = naive.deal(own.mask_key, drawn[powers:][::-1], places)
        dealt = next(
            entry["message"]
            for entry in attempt["messages"]
            if entry["kind"] == "SealedShares" and entry["from"] == name
        )
        for share in dealt["shares"]:
            peer = share["peer"]
            secret = naive.agreed(own.cipher_key, secrets_of(sites[peer]).cipher_key)
            pair = [dealt_to[cohort.index(peer)] for dealt_to in (seeds, keys)]
            assert share["box"] == naive.box(secret, context, digest, name, peer, pair)


def test_masked_values_and_the_sum_follow_from_what_was_drawn(attempt: dict[str, Any]) -> None:
    context = naive.context_digest(attempt["context"]["fields"])
    sites = attempt["sites"]
    told = said(attempt, "Survivors")[0]
    sharers = {name: secrets_of(sites[name]) for name in told["sharers"]}
    sent = {}
    for name in told["survivors"]:
        sent[name] = naive.masked(name, sites[name]["values"], sharers, context)
        assert sites[name]["masked"] == sent[name]
    opened = naive.opened(sent, sharers, context)
    assert attempt["sum"] == [naive.signed(value) for value in opened]
    expected = [
        sum(column)
        for column in zip(*(sites[name]["values"] for name in told["survivors"]), strict=True)
    ]
    assert attempt["sum"] == expected
