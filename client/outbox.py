"""Computed replies, sealed on the disk until the coordinator has them for good.

A site has paid for a reply from its ledger. So the reply is kept before a byte of it is sent, and
is sent again when it was lost on the way or with the coordinator: never computed again.

One file a run, ``<run>.reply``: sealed parts, each after its length. First a header, then the
arrays in the order of their names.
"""

import contextlib
import json
import logging
import os
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import IO, Any, Final

from core.array_codec import Encoded
from core.digests import canonical_json, json_digest
from core.errors import VaultError
from core.messages import TrainReply, TrainTask, decode, encode
from privacy.vault import Vault

logger = logging.getLogger(__name__)

# A run that ended while this site was away is never settled here: its reply goes at last.
MAX_RUNS: Final = 4
_LENGTH: Final = struct.Struct("<Q")
_SUFFIX: Final = ".reply"
_UNFINISHED: Final = ".unfinished-"


@dataclass(frozen=True)
class KeptReply:
    """A reply, and its arrays as they travel."""

    reply: TrainReply
    arrays: Mapping[str, Encoded]


@dataclass(frozen=True)
class _Header:
    order: str
    server_round: int
    batch: str
    reply: TrainReply
    arrays: tuple[tuple[str, str, tuple[int, ...], str], ...]


class Outbox:
    """The kept replies of one site. Safe to share between threads.

    Guarantees:
        When ``keep`` returns, the reply lies on the disk, encrypted, and a crash at any moment
        leaves the earlier reply of the run or this one, whole. ``find`` gives a reply only for an
        order that equals the one it was computed for in all but attempt and witness.

    Args:
        folder: Where they are kept; made where it is missing.
        vault: Seals them.
    """

    def __init__(self, folder: Path, vault: Vault) -> None:
        self._folder = folder
        self._vault = vault
        self._lock = threading.Lock()
        with _disk(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in folder.glob(f"{_UNFINISHED}*"):
                left.unlink()

    def keep(self, order: TrainTask, reply: TrainReply, arrays: Mapping[str, Encoded]) -> None:
        """Seals the reply to ``order``, in place of the run's earlier one.

        Raises:
            VaultError: It cannot be sealed or written; then it may not be sent.
        """
        header = _Header(
            order=_key(order),
            server_round=order.server_round,
            batch=token_hex(16),
            reply=reply,
            arrays=tuple((n, arrays[n].dtype, arrays[n].shape, arrays[n].stype) for n in arrays),
        )
        path = self._path(order.run_id)
        unfinished = self._folder / f"{_UNFINISHED}{order.run_id}"
        with self._lock, _disk(path):
            with unfinished.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                self._write(file, f"outbox/{order.run_id}", _header_json(header))
                for number, name in enumerate(arrays):
                    self._write(file, _purpose(header, number), arrays[name].data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
            self._sync_folder()
            self._forget_oldest(path)

    def find(self, order: TrainTask) -> KeptReply | None:
        """The kept reply to ``order``, addressed to its attempt; ``None`` where there is none.

        Raises:
            VaultError: What is kept for this run cannot be read.
        """
        path = self._path(order.run_id)
        with self._lock, _disk(path):
            if not path.exists():
                return None
            with path.open("rb") as file:
                header = self._header(file, order.run_id)
                if header.order != _key(order):
                    return None
                arrays = {
                    name: Encoded(dtype, shape, stype, self._read(file, _purpose(header, number)))
                    for number, (name, dtype, shape, stype) in enumerate(header.arrays)
                }
                if file.read(1):
                    raise VaultError(f"expected the end of {path}, got more")
        reply = header.reply.model_copy(update={"attempt": order.attempt})
        return KeptReply(reply, arrays)

    def settle(self, run_id: str, server_round: int) -> None:
        """Forgets the run's reply, unless it is of a later round.

        Raises:
            VaultError: It cannot be read or removed.
        """
        path = self._path(run_id)
        with self._lock, _disk(path):
            if not path.exists():
                return
            with path.open("rb") as file:
                kept = self._header(file, run_id).server_round
            if kept <= server_round:
                path.unlink()
                self._sync_folder()

    def _path(self, run_id: str) -> Path:
        return self._folder / f"{run_id}{_SUFFIX}"

    def _forget_oldest(self, newest: Path) -> None:
        others = [path for path in self._folder.glob(f"*{_SUFFIX}") if path != newest]
        others.sort(key=lambda path: path.stat().st_mtime_ns)
        for path in others[: max(0, len(others) + 1 - MAX_RUNS)]:
            logger.warning("forgets the reply of run %s, which nobody asked for", path.stem)
            path.unlink()

    def _header(self, file: IO[bytes], run_id: str) -> _Header:
        document = json.loads(self._read(file, f"outbox/{run_id}"))
        return _Header(
            order=document["order"],
            server_round=document["server_round"],
            batch=document["batch"],
            reply=decode(TrainReply, document["reply"].encode("ascii")),
            arrays=tuple((n, d, tuple(shape), s) for n, d, shape, s in document["arrays"]),
        )

    def _write(self, file: IO[bytes], purpose: str, data: bytes) -> None:
        sealed = self._vault.seal(purpose, data)
        file.write(_LENGTH.pack(len(sealed)))
        file.write(sealed)

    def _read(self, file: IO[bytes], purpose: str) -> bytes:
        prefix = file.read(_LENGTH.size)
        left = os.fstat(file.fileno()).st_size - file.tell()
        length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else left + 1
        if length > left:
            raise VaultError(f"expected a whole part in {file.name}, got a cut one")
        return self._vault.open(purpose, file.read(length))

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _key(order: TrainTask) -> str:
    """Equal for orders that ask for the same computation."""
    same = order.model_copy(update={"attempt": 1, "ledger_witness": None})
    return json_digest(same.model_dump(mode="json"))


def _purpose(header: _Header, number: int) -> str:
    """Binds an array to the one saving that it belongs to, and to its place there."""
    return f"outbox-array/{header.batch}/{number}"


def _header_json(header: _Header) -> bytes:
    fields: dict[str, Any] = {**vars(header), "reply": encode(header.reply).decode("ascii")}
    return canonical_json(fields)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VaultError(
            f"expected to read and write {path}, got: {error.strerror}",
            hint="a reply that cannot be kept is not sent: make room, or mend the disk",
        ) from error
    except VaultError as error:
        hint = error.hint or f"without {path} the round is trained again, with a new debit"
        raise VaultError(f"{path.name}: {error.message}", hint=hint) from error
