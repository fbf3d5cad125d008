"""The keystream is AES's, and a statistical test rejects what is slightly wrong.

Keys are fixed, so that a test says the same every time.
"""

import copy
import inspect
import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

import privacy.discrete_gaussian
import privacy.discrete_gaussian_grid
import privacy.discrete_gaussian_tables
import privacy.random_source
from core.errors import PrivacyError
from privacy.random_source import RandomSource, RandomStream

KEY = bytes(range(32))


def stream(purpose: str = "noise") -> RandomStream:
    return RandomSource.for_tests(KEY, "a test").stream(purpose)


# Keystream and keys


@pytest.mark.parametrize(
    ("key", "blocks"),
    [
        # McGrew and Viega's GCM specification, test case 13: H and the tag, AES of 0 and of 1
        ("00" * 32, ["dc95c078a2408989ad48a21492842087", "530f8afbc74536b9a963b4f1c4cb738b"]),
        ("80" + "00" * 31, ["e35a6dcb19b201a01ebcfa8aa22b5759"]),  # CAVP, ECBVarKey256, COUNT 0
    ],
)
def test_words_are_the_blocks_of_aes_256_in_counter_mode(key: str, blocks: list[str]) -> None:
    words = RandomStream(bytes.fromhex(key)).words(2 * len(blocks))
    assert words.tobytes().hex() == "".join(blocks)


def test_keystream_equals_nists_counter_mode_vector() -> None:
    """SP 800-38A, F.5.5, whose counter does not begin at 0: each block is AES of its counter."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    aes = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305 (block by block)
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    assert aes.update(counter).hex() == "0bdf7df1591716335e9a8b15c860c502"  # its output block 1
    blocks = b"".join(aes.update(number.to_bytes(16, "big")) for number in range(5))
    assert RandomStream(key).words(10).tobytes() == blocks


@pytest.mark.parametrize("count", [0, 1, 7, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, 100_001])
def test_words_do_not_depend_on_how_they_are_asked_for(count: int) -> None:
    whole = stream().words(count)
    pieces = stream()
    assert whole.shape == (count,)
    assert whole.dtype == np.uint64
    first = pieces.words(count // 3)
    np.testing.assert_array_equal(np.concatenate([first, pieces.words(count - len(first))]), whole)


def test_cells_and_fillings_are_the_same_keystream_and_no_byte_comes_twice() -> None:
    whole = stream().words(1000).tobytes()
    pieces, filled = stream(), bytearray(b"\xff" * 6)
    first = pieces.cells(5).tobytes()
    pieces.fill(filled)
    assert first + filled + pieces.words(10).tobytes() == whole[:96]
    assert pieces.branches(3) == [whole[start : start + 32] for start in (96, 128, 160)]
    assert pieces.branches(0) == []
    assert pieces.cells(1).tobytes() == whole[192:194]


def test_a_long_filling_is_the_same_keystream() -> None:
    filled, after = bytearray(600_000), stream()
    after.fill(filled)
    assert filled + after.words(1).tobytes() == stream().words(75_001).tobytes()


def test_a_cell_is_its_two_bytes_lowest_first() -> None:
    raw = stream().words(2).tobytes()
    assert stream().cells(3).tolist() == [raw[i] + 256 * raw[i + 1] for i in (0, 2, 4)]


def test_a_stream_never_repeats_itself() -> None:
    words = stream().words(100_000)
    assert len(np.unique(words)) == 100_000


def test_purposes_keys_and_contexts_give_unrelated_streams() -> None:
    streams = [
        RandomSource.for_tests(KEY, "a").stream("noise"),
        RandomSource.for_tests(KEY, "a").stream("sampling"),
        RandomSource.for_tests(KEY, "b").stream("noise"),
        RandomSource.for_tests(KEY[::-1], "a").stream("noise"),
        RandomStream(KEY),
    ]
    words = np.concatenate([one.words(1000) for one in streams])
    assert len(np.unique(words)) == 5000
    bits = np.unpackbits(words.view(np.uint8)).reshape(5, -1) - 0.5
    correlations = np.corrcoef(bits)[np.triu_indices(5, 1)]
    assert np.abs(correlations).max() < 5 / math.sqrt(64_000)


def test_streams_of_equal_key_context_and_purpose_are_equal() -> None:
    np.testing.assert_array_equal(stream().words(100), stream().words(100))


def test_keys_come_from_hkdf_sha256() -> None:
    """Fixed for good: resumed test runs depend on it. RFC 5869 by hand."""
    import hashlib
    import hmac

    def derive(key: bytes, info: bytes) -> bytes:
        extracted = hmac.new(bytes(32), key, hashlib.sha256).digest()
        return hmac.new(extracted, b"cloister/1/" + info + b"\x01", hashlib.sha256).digest()

    expected = RandomStream(derive(derive(KEY, b"a test"), b"noise"))
    np.testing.assert_array_equal(stream().words(4), expected.words(4))


def test_a_purpose_is_given_once() -> None:
    source = RandomSource.fresh()
    source.stream("noise")
    source.stream("sampling")
    with pytest.raises(PrivacyError, match="'noise' was already used in this round\nhint: noise"):
        source.stream("noise")


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_source_cannot_be_copied(duplicate: Callable[[RandomSource], RandomSource]) -> None:
    with pytest.raises(PrivacyError, match="stay where it was made, got a copy"):
        duplicate(RandomSource.fresh())


def test_a_stream_cannot_be_copied() -> None:
    with pytest.raises(TypeError):
        copy.deepcopy(stream())


def test_fresh_sources_differ_and_ask_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (RandomSource.fresh().stream("noise").words(4) for _ in range(2))
    assert not np.array_equal(first, second)
    asked: list[int] = []

    def urandom(size: int) -> bytes:
        asked.append(size)
        return KEY

    monkeypatch.setattr(privacy.random_source.os, "urandom", urandom)
    drawn = RandomSource.fresh().stream("noise").words(4)
    assert asked == [32]
    np.testing.assert_array_equal(drawn, RandomSource(KEY, private=True).stream("noise").words(4))


def test_only_a_fresh_source_is_private_and_stays_what_it_is() -> None:
    assert RandomSource.fresh().private
    predictable = RandomSource.for_tests(KEY, "a test")
    assert not predictable.private
    with pytest.raises(AttributeError):
        predictable.private = True  # type: ignore[misc]


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(PrivacyError, match=f"expected a key of 32 bytes, got {size}"):
        RandomSource(bytes(size), private=True)


def test_keys_do_not_show() -> None:
    source = RandomSource(KEY, private=True)
    shown = f"{source} {source!r} {source.stream('noise')!r}"
    assert shown.count("key=***") == 3
    assert KEY.hex() not in shown
    assert repr(KEY)[2:-1] not in shown


def test_the_global_generators_have_no_influence_and_are_left_alone() -> None:
    def draws(seed: int) -> tuple[object, ...]:
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        one = stream()
        drawn = (
            one.words(5).tolist(),
            one.bernoulli(50, 0.3).tolist(),
            one.subset(np.arange(50), 7).tolist(),
            one.cells(9).tolist(),
            one.branches(2),
        )
        assert torch.equal(torch.random.get_rng_state(), before)
        return drawn

    assert draws(1) == draws(2)


@pytest.mark.parametrize(
    "module",
    [
        privacy.random_source,
        privacy.discrete_gaussian,
        privacy.discrete_gaussian_grid,
        privacy.discrete_gaussian_tables,
    ],
)
def test_no_other_generator_is_named_in_the_module(module: ModuleType) -> None:
    source = inspect.getsource(module)
    for name in ("np.random", "torch.rand", "torch.normal", "import random", "default_rng"):
        assert name not in source


# Words and Bernoulli draws


def test_words_are_uniform_in_every_byte() -> None:
    counts = np.bincount(stream().words(100_000).view(np.uint8), minlength=256)
    assert 0.001 < stats.chisquare(counts).pvalue < 0.999
    biased = counts.astype(np.float64)
    biased[0] *= 1.3
    biased *= counts.sum() / biased.sum()
    assert stats.chisquare(biased).pvalue < 0.001


def bernoulli_pvalue(hits: int, count: int, probability: float) -> float:
    return float(stats.binomtest(hits, count, probability).pvalue)


@pytest.mark.parametrize("probability", [1e-4, 0.016, 0.5, 0.97])
def test_bernoulli_hits_with_its_probability_and_with_no_other(probability: float) -> None:
    count = 4_000_000
    hits = len(stream().bernoulli(count, probability))
    assert bernoulli_pvalue(hits, count, probability) > 0.01
    off = 6 * math.sqrt(probability * (1 - probability) / count)
    for wrong in (probability - off, probability + off):
        assert bernoulli_pvalue(hits, count, wrong) < 1e-4


class FixedWords(RandomStream):
    """A stream of chosen words, to stand at the edges."""

    def __init__(self, *values: int) -> None:
        super().__init__(KEY)
        self.values = np.array(values, dtype=np.uint64)

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        return self.values[:count]


@pytest.mark.parametrize("probability", [2.0**-64, 0.25, 1 / 3, 1 - 2.0**-53])
def test_bernoulli_never_exceeds_its_probability(probability: float) -> None:
    threshold = int(probability * 2**64)
    assert threshold / 2**64 <= probability
    drawn = FixedWords(threshold - 1, threshold, 2**64 - 1).bernoulli(3, probability)
    assert drawn.tolist() == [0]


def test_bernoulli_below_the_smallest_step_never_hits() -> None:
    assert len(FixedWords(0, 0).bernoulli(2, 2.0**-65)) == 0


def test_bernoulli_of_probability_one_takes_everyone() -> None:
    assert stream().bernoulli(5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert stream().bernoulli(0, 0.5).tolist() == []


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_what_is_no_probability_is_refused(probability: float) -> None:
    with pytest.raises(PrivacyError, match=r"expected a probability in \(0, 1\], got"):
        stream().bernoulli(3, probability)


def test_subsets_are_uniform() -> None:
    """All 10 subsets of 2 out of 5, equally often."""
    one = stream()
    indices = np.array([3, 10, 11, 40, 99])
    drawn = [tuple(one.subset(indices, 2).tolist()) for _ in range(20_000)]
    kinds, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(kinds) == 10
    assert all(first < second for first, second in drawn)
    assert stats.chisquare(counts).pvalue > 0.01
    assert stats.chisquare(counts, np.array([1.2, *[8.8 / 9] * 9]) * 2000).pvalue < 0.001


def test_a_subset_of_everything_is_everything() -> None:
    assert stream().subset(np.array([5, 2, 9]), 3).tolist() == [2, 5, 9]
