"""A site's round whose update travels in fewer bits."""

from dataclasses import replace
from pathlib import Path

import pytest

from client.local_round import RoundResult, local_round
from core.digests import arrays_digest
from core.errors import PolicyRefusedError
from core.messages import TrainTask
from core.update_codec import UpdateEncoding, encode_update, reply_manifest
from privacy.random_source import RandomSource
from tests.support.site import SiteAtWork, make_site


def same_noise(order: TrainTask) -> RandomSource:
    """Follows the site and the round only, so that two tasks draw alike."""
    return RandomSource.for_tests(b"\x5e" * 32, f"{order.site}/{order.server_round}")


def encoded(folder: Path, encoding: UpdateEncoding) -> tuple[SiteAtWork, RoundResult]:
    at_work = make_site(
        folder,
        overrides=(f'transport.update_encoding="{encoding}"',),
        policy={"allow_test_noise": True},
    )
    site = replace(at_work.site, randomness=same_noise)
    return at_work, local_round(site, at_work.workshop, at_work.order, at_work.arrays)


@pytest.mark.parametrize("encoding", ["fp32", "bf16", "int8"])
def test_what_leaves_is_encoded_as_the_terms_say(tmp_path: Path, encoding: UpdateEncoding) -> None:
    at_work, result = encoded(tmp_path, encoding)
    assert at_work.order.terms.update_encoding == encoding
    assert result.reply.arrays_digest == arrays_digest(result.arrays)
    assert {name: (a.shape, a.dtype) for name, a in result.arrays.items()} == {
        name: (spec.shape, spec.dtype)
        for name, spec in reply_manifest(at_work.workshop.manifest, encoding).items()
    }


@pytest.mark.parametrize("encoding", ["bf16", "int8"])
def test_what_leaves_follows_from_the_noised_weights_alone(
    tmp_path: Path, encoding: UpdateEncoding
) -> None:
    """Post-processing: whoever sees the weights in fp32 could have made it, bit for bit."""
    at_work, plain = encoded(tmp_path / "fp32", "fp32")
    made = encode_update(plain.arrays, at_work.arrays, encoding)
    assert encoded(tmp_path / encoding, encoding)[1].reply.arrays_digest == arrays_digest(made)


def test_the_debit_is_the_same_for_every_encoding(tmp_path: Path) -> None:
    spent = []
    for encoding in ("fp32", "bf16", "int8"):
        at_work = make_site(
            tmp_path / encoding, overrides=(f'transport.update_encoding="{encoding}"',)
        )
        result = local_round(at_work.site, at_work.workshop, at_work.order, at_work.arrays)
        spent.append(result.reply.spent)
    assert spent[0].epsilon is not None
    assert spent[0] == spent[1] == spent[2]


def test_a_site_approves_the_encoding_with_the_task(tmp_path: Path) -> None:
    at_work = make_site(tmp_path)
    order = at_work.change_terms(update_encoding="int8")
    with pytest.raises(PolicyRefusedError):
        local_round(at_work.site, at_work.workshop, order, at_work.arrays)
