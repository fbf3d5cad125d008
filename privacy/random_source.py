"""Cryptographic random numbers for noise and for sampling: AES-256-CTR under single-use keys.

torch's and numpy's generators are not used: torch's CPU generator has a 32-bit seed, and noise
from a known seed can be taken off again by anyone.
"""

import os
from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from core.errors import PrivacyError

KEY_BYTES: Final = 32
_BLOCK_WORDS: Final = 1 << 15  # 256 KiB: stays in the second-level cache
_ZEROS: Final = memoryview(bytes(8 * _BLOCK_WORDS))

Words = npt.NDArray[np.uint64]
Cells = npt.NDArray[np.uint16]


class RandomStream:
    """One keystream, read forwards only.

    Guarantees:
        A word is uniform over 64 bits, and a cell over 16, as far as AES-256 is a pseudo-random
        permutation. No byte of the keystream is given twice.
    """

    def __init__(self, key: bytes) -> None:
        self._keystream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def __repr__(self) -> str:
        return "RandomStream(key=***)"

    def words(self, count: int) -> Words:
        """The next ``count`` words of 64 uniform bits."""
        parts = [
            np.frombuffer(self._keystream.update(_ZEROS[: 8 * size]), dtype="<u8")
            for size in _block_sizes(count)
        ]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)

    def fill(self, cells: bytearray) -> None:
        """Overwrites ``cells`` with the next bytes of the keystream."""
        view = memoryview(cells)
        for start in range(0, len(cells), len(_ZEROS)):
            part = view[start : start + len(_ZEROS)]
            self._keystream.update_into(_ZEROS[: len(part)], part)

    def cells(self, count: int) -> Cells:
        """The next ``count`` cells of 16 uniform bits; at most 131,072 of them."""
        return np.frombuffer(self._keystream.update(_ZEROS[: 2 * count]), dtype="<u2")

    def branches(self, count: int) -> list[bytes]:
        """Keys of ``count`` streams of their own, so that several threads draw what one would."""
        keys = self.words(count * KEY_BYTES // 8).tobytes()
        return [keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES)]

    def bernoulli(self, count: int, probability: float) -> npt.NDArray[np.int64]:
        """Indices in ``range(count)``, each there independently with ``probability``.

        Guarantees:
            The chance of an index is ``probability`` rounded down to a multiple of 2**-64: never
            more than what the accountant is told.
        """
        if not 0.0 < probability <= 1.0:
            raise PrivacyError(f"expected a probability in (0, 1], got {probability}")
        if probability == 1.0:
            return np.arange(count, dtype=np.int64)
        threshold = np.uint64(int(probability * 2.0**64))
        return np.flatnonzero(self.words(count) < threshold).astype(np.int64, copy=False)

    def subset(self, indices: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
        """A uniformly random subset of ``size`` of the ``indices``, in ascending order."""
        order = np.argsort(self.words(len(indices)), kind="stable")
        return np.sort(indices[order[:size]])


class RandomSource:
    """Keys for the streams of one local round.

    Guarantees:
        A fresh source is keyed by the operating system and never by a configuration. A purpose
        gives a stream once: asking again raises, and a source cannot be copied, so that no noise
        is used twice.
    """

    def __init__(self, key: bytes, *, private: bool) -> None:
        if len(key) != KEY_BYTES:
            raise PrivacyError(f"expected a key of {KEY_BYTES} bytes, got {len(key)}")
        self._key = key
        self._used: set[str] = set()
        self._private = private

    @classmethod
    def fresh(cls) -> "RandomSource":
        """A source that nobody can predict or repeat."""
        return cls(os.urandom(KEY_BYTES), private=True)

    @classmethod
    def for_tests(cls, key: bytes, context: str) -> "RandomSource":
        """A predictable source, for tests of equality only: ``private`` is false for good.

        Args:
            key: 32 bytes; the same key and context give the same streams.
            context: What must not share streams, such as run, round and site.
        """
        return cls(_derive(key, context), private=False)

    @property
    def private(self) -> bool:
        """Whether nobody can predict the streams."""
        return self._private

    def stream(self, purpose: str) -> RandomStream:
        """The stream for ``purpose``, such as ``noise`` or ``sampling``; once only."""
        if purpose in self._used:
            raise PrivacyError(
                f"the random stream for {purpose!r} was already used in this round",
                hint="noise must never be used twice: make a new RandomSource",
            )
        self._used.add(purpose)
        return RandomStream(_derive(self._key, purpose))

    def __repr__(self) -> str:
        return f"RandomSource(key=***, private={self.private})"

    def __reduce__(self) -> NoReturn:
        """Raises: a copy, or a pickle of it, would give the same streams again."""
        raise PrivacyError(
            "expected a random source to stay where it was made, got a copy of it",
            hint="noise must never be used twice: make a new RandomSource",
        )


def _derive(key: bytes, info: str) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"cloister/1/" + info.encode()).derive(key)


def _block_sizes(count: int) -> list[int]:
    full, rest = divmod(count, _BLOCK_WORDS)
    return [_BLOCK_WORDS] * full + ([rest] if rest else [])
