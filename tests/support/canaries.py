"""Every secret of secure aggregation, written down beside the product, and a search for them.

``bury`` wraps the makers of secrets, in the process that it runs in: private keys, seeds, agreed
secrets, derived keys, polynomials, shares, masks, encoded updates and trained weights. What it
writes lies outside of the product's folders; ``find`` looks for each of them there, in every form
in which it could have come there.
"""

import base64
import contextlib
import functools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from client import secure_round
from core.errors import CloisterError
from privacy.secure_aggregation import keys, shamir, site, site_secrets

KINDS: Final = ("drawn", "agreed", "derived", "share", "mask", "encoded", "trained", "moved")
_PIECE: Final = 64
_PREFIX: Final = 8
_MOST: Final = 20_000  # of one test's secrets that are looked for

Tell = Callable[[str, bytes], None]


def bury(folder: Path) -> None:
    """From now on, every secret of this process is a line of its own file in ``folder``."""
    path = folder / f"{os.getpid()}.jsonl"

    def tell(kind: str, secret: bytes) -> None:
        with path.open("a") as file:
            file.write(json.dumps([kind, secret.hex()]) + "\n")

    for owner, name, wrapped in makers(tell):
        setattr(owner, name, wrapped)


def makers(tell: Tell) -> Iterator[tuple[Any, str, Any]]:
    """What makes secrets, where it is, and the same again, which tells of each."""
    yield site_secrets.SiteSecrets, "__init__", _drawing(site_secrets.SiteSecrets.__init__, tell)
    yield keys.KeyPair, "agree", _returning(keys.KeyPair.agree, "agreed", tell)
    yield keys, "derive", _returning(keys.derive, "derived", tell)
    yield shamir, "split", _splitting(shamir.split, tell)
    yield site, "add_masks", _masking(site.add_masks, tell)  # type: ignore[attr-defined]
    yield secure_round, "difference_norm", _training(secure_round.difference_norm, tell)  # type: ignore[attr-defined]


def buried(folder: Path) -> set[tuple[str, bytes]]:
    """Kind and secret, of all processes."""
    lines = (line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines())
    return {(kind, bytes.fromhex(secret)) for kind, secret in map(json.loads, lines)}


def forms(secret: bytes) -> Iterator[bytes]:
    """The secret as it could stand in a file: raw, and as text of some kind."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield repr(secret)[2:-1].encode()
    yield str(list(secret))[1:-1].encode()
    for order in ("big", "little"):
        yield str(int.from_bytes(secret, order)).encode()  # type: ignore[arg-type]
    for shift, cut in ((0, 0), (1, 2), (2, 3)):
        text = base64.b64encode(bytes(shift) + secret)[cut:-4]
        yield text
        yield text.translate(bytes.maketrans(b"+/", b"-_"))


def find(secrets: Iterable[tuple[str, bytes]], haystacks: Mapping[str, bytes]) -> set[str]:
    """Which of the secrets are in which haystacks, as ``kind in name``; the secret is not said."""
    needles: dict[int, list[tuple[str, bytes]]] = {}
    for kind, secret in secrets:
        for form in forms(secret):
            needles.setdefault(int.from_bytes(form[:_PREFIX], "little"), []).append((kind, form))
    prefixes = np.array(sorted(needles), dtype=np.uint64)
    found = set()
    for name, data in haystacks.items():
        for place, prefix in _places(data, prefixes):
            found |= {
                f"{kind} in {name}"
                for kind, form in needles[prefix]
                if data.startswith(form, place)
            }
    return found


def files_below(folder: Path) -> dict[str, bytes]:
    """All files, by their paths."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def _places(data: bytes, prefixes: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Where ``data`` goes on like one of the needles, and like which."""
    for shift in range(min(_PREFIX, max(0, len(data) - _PREFIX + 1))):
        words = np.frombuffer(data, "<u8", count=(len(data) - shift) // _PREFIX, offset=shift)
        for index in np.flatnonzero(np.isin(words, prefixes)):
            yield shift + _PREFIX * int(index), int(words[index])


def _pieces(values: npt.NDArray[Any]) -> Iterator[bytes]:
    """Parts of a vector that are like nothing else: no zeros, no repetitions."""
    flat = np.ravel(values)
    size = _PIECE // flat.itemsize
    for start in range(0, flat.size - size + 1, max(size, flat.size // 6)):
        piece = flat[start : start + size]
        if len(np.unique(piece)) == size:
            yield piece.tobytes()


def _drawing(init: Callable[..., None], tell: Tell) -> Callable[..., None]:
    @functools.wraps(init)
    def wrapper(self: Any, name: str, context: bytes, random: Callable[[int], bytes]) -> None:
        def drawing(count: int) -> bytes:
            drawn = random(count)
            tell("drawn", drawn)
            return drawn

        init(self, name, context, drawing)

    return wrapper


def _returning(function: Callable[..., bytes], kind: str, tell: Tell) -> Callable[..., bytes]:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> bytes:
        secret = function(*arguments)
        tell(kind, secret)
        return secret

    return wrapper


def _splitting(split: Callable[..., list[int]], tell: Tell) -> Callable[..., list[int]]:
    @functools.wraps(split)
    def wrapper(*arguments: Any) -> list[int]:
        shares = split(*arguments)
        for share in shares:
            tell("share", shamir.share_bytes(share))
        return shares

    return wrapper


def _masking(add_masks: Callable[..., None], tell: Tell) -> Callable[..., None]:
    @functools.wraps(add_masks)
    def wrapper(values: npt.NDArray[np.uint32], masks: Any) -> None:
        before = values.copy()
        add_masks(values, masks)
        for piece in _pieces(before):
            tell("encoded", piece)
        for piece in _pieces(values - before):
            tell("mask", piece)

    return wrapper


def _training(norm: Callable[..., float], tell: Tell) -> Callable[..., float]:
    @functools.wraps(norm)
    def wrapper(trained: Mapping[str, Any], before: Mapping[str, Any]) -> float:
        for name, array in trained.items():
            for piece in _pieces(array):
                tell("trained", piece)
            for piece in _pieces(array - before[name]):
                tell("moved", piece)
        return norm(trained, before)

    return wrapper


class Lookout:
    """One test's secrets, and what the product said in it: errors and logs, whoever caught them."""

    def __init__(self) -> None:
        self.secrets: dict[tuple[str, bytes], None] = {}
        self.said: list[str] = []

    def tell(self, kind: str, secret: bytes) -> None:
        """A secret was made. Of a test that makes very many, the first are enough."""
        if len(self.secrets) < _MOST:
            self.secrets[kind, secret] = None

    def found(self) -> set[str]:
        """Which kinds of secrets were said."""
        if not self.secrets or not self.said:
            return set()
        return find(self.secrets, {"a log or an error": "\n".join(self.said).encode()})


class Eavesdropper(logging.Handler):
    """Hears every line of a log, with the error in it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.NOTSET)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Takes it as it would be written."""
        self._say(self.format(record))


@contextlib.contextmanager
def listening(current: Callable[[], Lookout]) -> Iterator[None]:
    """Tells the current lookout of all secrets, of all errors and of what the product logs."""
    patch = pytest.MonkeyPatch()
    for owner, name, wrapped in makers(lambda kind, secret: current().tell(kind, secret)):
        patch.setattr(owner, name, wrapped)
    init = CloisterError.__init__

    @functools.wraps(init)
    def heard(self: CloisterError, message: str, *, hint: str = "") -> None:
        init(self, message, hint=hint)
        current().said.append(f"{message}\n{hint}")

    patch.setattr(CloisterError, "__init__", heard)
    handler = Eavesdropper(lambda line: current().said.append(line))
    loggers = [logging.getLogger(name) for name in ("client", "coordinator", "privacy", "core")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        patch.undo()
        for logger in loggers:
            logger.removeHandler(handler)
