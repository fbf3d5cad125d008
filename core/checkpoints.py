"""Checkpoints: folders of safetensors files and a manifest with digests, written atomically.

    round-000012/
        manifest.json          schema version, size and SHA-256 of each file, metadata, own digest
        <name>.safetensors     named arrays
        <name>.sealed          or, where a seal is given, the same encrypted; then the metadata is
                               sealed too, together with the digests of the files

The digests find damage, not forgery: whoever can write the folder can write a manifest to match,
unless it is sealed. One process writes to a root at a time; any number may read.
"""

import base64
import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from core.digests import canonical_json, json_digest
from core.errors import CheckpointError
from core.sealed_arrays import Seal, read_sealed_arrays, write_sealed_arrays

SCHEMA_VERSION: Final = 1
MANIFEST = "manifest.json"
_SUFFIX = ".safetensors"
_SEALED_SUFFIX = ".sealed"
_SEALED = "sealed"
_PURPOSE = "checkpoint"
_UNFINISHED = ".unfinished-"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ROUND = re.compile(r"round-(\d{6,})")
# What numpy and safetensors both have. Not bfloat16, which numpy lacks: convert it to float32.
_DTYPES = frozenset(
    ["bool", "float16", "float32", "float64"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
)

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    arrays: Mapping[str, Arrays]
    metadata: Mapping[str, Any]


def checkpoint_folder(root: Path, server_round: int) -> Path:
    """Where the checkpoint of a round stands, such as ``root/round-000012``."""
    return root / f"round-{server_round:06d}"


def save_checkpoint(
    folder: Path,
    arrays: Mapping[str, Arrays],
    metadata: Mapping[str, Any],
    *,
    seal: Seal | None = None,
) -> None:
    """Writes a checkpoint, wholly or not at all.

    Guarantees:
        A process or a machine that stops at any moment leaves either no ``folder`` or a complete
        one: all bytes are on the disk before the folder gets its name. What a stopped save left
        behind is removed by the next one beside it. With a seal, neither arrays nor metadata
        ever lie on the disk in the clear.

    Args:
        folder: Where; must not exist.
        arrays: For each file, named arrays of numbers or booleans.
        metadata: A JSON object; what is loaded equals what was saved.
        seal: Encrypts arrays and metadata; ``None`` leaves them in the clear.

    Raises:
        VaultError: The seal cannot be used.
        CheckpointError: ``folder`` exists, a name or a value cannot be stored, or the disk
            cannot be written.
    """
    if os.path.lexists(folder):
        raise CheckpointError(
            f"expected no checkpoint at {folder} yet, got one", hint="a checkpoint never changes"
        )
    _check_metadata(metadata)
    ready = {name: _storable(name, inner) for name, inner in arrays.items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder.parent)
        unfinished = folder.with_name(_UNFINISHED + folder.name)
        unfinished.mkdir()
        _write(unfinished, ready, metadata, seal)
        unfinished.rename(folder)
        _sync(folder.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            _remove_unfinished(folder.parent)
        raise CheckpointError(
            f"cannot write the checkpoint {folder}: {error}",
            hint="is there room on the disk, and may this user write there?",
        ) from error


def load_checkpoint(folder: Path, *, seal: Seal | None = None) -> Checkpoint:
    """Reads a checkpoint after checking all of it.

    Guarantees:
        Arrays and metadata are, bit for bit, what was saved, or nothing is returned. With a seal,
        they are what was saved under it, in one checkpoint: one in the clear is refused.

    Args:
        folder: The checkpoint.
        seal: What it was saved with.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged; says which file and how.
        VaultError: It was sealed with another key, or altered.
    """
    with _reading(folder):
        # 1. The manifest is whole and of a version that we know.
        manifest = _read_manifest(folder / MANIFEST)
        if seal is not None or _SEALED in manifest:
            manifest["metadata"] = _open_metadata(folder, manifest, seal)
        # 2. Exactly the files of the manifest are there, as plain files.
        _check_listing(folder, manifest["files"])
        # 3. Each has its size and digest. 4. Only then is it parsed.
        for name, expected in manifest["files"].items():
            _check_file(folder / name, expected)
        arrays = {Path(name).stem: _load(folder / name, seal) for name in manifest["files"]}
    return Checkpoint(arrays=arrays, metadata=manifest["metadata"])


def newest_checkpoint(root: Path) -> Path | None:
    """The finished checkpoint of the highest round below ``root``; ``None`` where there is none."""
    finished = _finished(root)
    return finished[-1] if finished else None


def prune_checkpoints(root: Path, keep: int) -> None:
    """Removes all but the newest ``keep`` checkpoints, each at once or not at all.

    Raises:
        CheckpointError: ``keep`` is not positive, or a folder cannot be removed.
    """
    if keep < 1:
        raise CheckpointError(f"expected to keep 1 checkpoint or more, got {keep}")
    try:
        for folder in _finished(root)[:-keep]:
            # Renamed first: a stop within the removal leaves no half checkpoint.
            folder.rename(folder.with_name(_UNFINISHED + folder.name))
        _remove_unfinished(root)
    except OSError as error:
        raise CheckpointError(f"cannot remove a checkpoint in {root}: {error}") from error


def _finished(root: Path) -> list[Path]:
    """Checkpoint folders by round, oldest first."""
    if not root.is_dir():
        return []
    rounds = [
        (int(match[1]), folder)
        for folder in root.iterdir()
        if (match := _ROUND.fullmatch(folder.name)) and (folder / MANIFEST).is_file()
    ]
    return [folder for _, folder in sorted(rounds)]


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    try:
        same = json.loads(canonical_json(dict(metadata))) == metadata
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"expected metadata as a JSON object, got: {error}") from error
    if not same:
        raise CheckpointError(
            "expected metadata as a JSON object, got one that JSON would change",
            hint="use texts as keys, and lists for tuples",
        )


def _storable(name: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
    """Copies only where safetensors, which reads raw memory, would take a wrong order of it."""
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"expected a file name of a-z, 0-9, _ and -, got {name!r}")
    ready = {}
    for key, value in arrays.items():
        array = np.asarray(value)
        if array.dtype.name not in _DTYPES:
            raise CheckpointError(
                f"expected an array of numbers or booleans for {key!r}, got {array.dtype}",
                hint="convert bfloat16 to float32, which holds it exactly",
            )
        ready[key] = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    return ready


def _write(
    folder: Path, arrays: Mapping[str, Any], metadata: Mapping[str, Any], seal: Seal | None
) -> None:
    files = {}
    for name, inner in arrays.items():
        path = folder / (name + (_SUFFIX if seal is None else _SEALED_SUFFIX))
        if seal is None:
            save_file(inner, path)
        else:
            write_sealed_arrays(path, inner, seal, f"{_PURPOSE}/{path.name}")
        _sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _file_sha256(path)}
    body: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "files": files}
    if seal is None:
        body["metadata"] = dict(metadata)
    else:
        body |= {"metadata": {}, _SEALED: _seal_metadata(files, metadata, seal)}
    manifest = folder / MANIFEST
    manifest.write_bytes(canonical_json(body | {"sha256": json_digest(body)}))
    _sync(manifest)
    _sync(folder)


def _seal_metadata(files: Mapping[str, Any], metadata: Mapping[str, Any], seal: Seal) -> str:
    """With the files' digests: no file of another checkpoint takes the place of one of this."""
    document = canonical_json({"files": files, "metadata": dict(metadata)})
    return base64.b64encode(seal.seal(_PURPOSE, document)).decode("ascii")


def _open_metadata(folder: Path, manifest: Mapping[str, Any], seal: Seal | None) -> dict[str, Any]:
    if seal is None or _SEALED not in manifest:
        expected, got = ("in the clear", "sealed") if seal is None else ("sealed", "in the clear")
        raise CheckpointError(
            f"expected a checkpoint {expected} at {folder}, got one {got}",
            hint="`cloister coordinator export` opens a sealed one; a service takes no other",
        )
    blob = base64.b64decode(manifest[_SEALED], validate=True)
    document = json.loads(seal.open(_PURPOSE, blob))
    if document["files"] != manifest["files"]:
        raise CheckpointError(f"expected the files that were sealed in {folder}, got others")
    return dict(document["metadata"])


def _load(path: Path, seal: Seal | None) -> dict[str, npt.NDArray[Any]]:
    if seal is not None:
        return read_sealed_arrays(path, seal, f"{_PURPOSE}/{path.name}")
    arrays: dict[str, npt.NDArray[Any]] = load_file(path)
    return arrays


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _remove_unfinished(root: Path) -> None:
    for folder in root.glob(_UNFINISHED + "*"):
        shutil.rmtree(folder)


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turns what reading may raise into CheckpointError."""
    try:
        yield
    except (OSError, SafetensorError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read the checkpoint {folder}: {error}") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"expected a checkpoint at {path.parent}, got no {MANIFEST} there")
    raw = path.read_bytes()
    try:
        body = json.loads(raw)
        version = body["schema_version"]
        claimed = body.pop("sha256", None)
        intact = claimed == json_digest(body) and raw == canonical_json(body | {"sha256": claimed})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"expected a manifest in {path}, got other or damaged text"
        ) from error
    # Before the digest: another version may count it otherwise.
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"expected schema version {SCHEMA_VERSION} in {path}, got {version!r}",
            hint="did a newer Cloister write this checkpoint?",
        )
    if not intact:
        raise CheckpointError(
            f"expected {path} as it was written, got an edited or damaged one",
            hint="go back to an older checkpoint",
        )
    if not _well_formed(body):
        raise CheckpointError(f"expected files and metadata in {path}, got something else")
    return dict(body)


def _well_formed(body: Mapping[str, Any]) -> bool:
    files = body.get("files")
    return (
        isinstance(body.get("metadata"), dict)
        and isinstance(files, dict)
        and all(
            Path(name).suffix in (_SUFFIX, _SEALED_SUFFIX)
            and _NAME.fullmatch(Path(name).stem) is not None
            and Path(name).name == name
            and isinstance(entry, dict)
            and entry.keys() == {"bytes", "sha256"}
            for name, entry in files.items()
        )
    )


def _check_listing(folder: Path, files: Mapping[str, Any]) -> None:
    found = {path.name: path for path in folder.iterdir() if path.name != MANIFEST}
    for name in sorted(files):
        path = found.pop(name, None)
        if path is None:
            raise CheckpointError(f"expected {name} in {folder}, got none: the file is missing")
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"expected {path} as a plain file, got something else")
    if found:
        raise CheckpointError(f"expected nothing more in {folder}, got {', '.join(sorted(found))}")


def _check_file(path: Path, expected: Mapping[str, Any]) -> None:
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise CheckpointError(f"expected {expected['bytes']} bytes in {path}, got {size}")
    if _file_sha256(path) != expected["sha256"]:
        raise CheckpointError(
            f"expected {path} as it was written, got other bytes: its digest differs",
            hint="go back to an older checkpoint",
        )
