"""Sealed checkpoints: nothing in the clear, and nothing that was put in another's place."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from core.checkpoints import MANIFEST, load_checkpoint, save_checkpoint
from core.digests import canonical_json, json_digest, sha256_hex
from core.errors import CheckpointError, VaultError
from core.sealed_arrays import read_sealed_arrays, write_sealed_arrays
from privacy.vault import Vault

VAULT = Vault(bytes(range(32)))
ARRAYS: dict[str, dict[str, npt.NDArray[Any]]] = {
    "model": {
        "weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "bias": np.array([-0.0, np.nan, np.inf], dtype=np.float16),
        "step": np.asarray(7),
        "empty": np.zeros((0, 3)),
    },
    "strategy": {"m": np.array([True, False])},
    "nothing": {},
}
METADATA = {"round": 12, "rng": {"state": 2**127, "names": ["a", None]}, "loss": 0.25}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "round-000012"
    save_checkpoint(folder, ARRAYS, METADATA, seal=VAULT)
    return folder


def edit(folder: Path, **changes: object) -> None:
    """Changes the manifest and makes its own digest match again."""
    body = json.loads((folder / MANIFEST).read_bytes()) | changes
    del body["sha256"]
    (folder / MANIFEST).write_bytes(canonical_json(body | {"sha256": json_digest(body)}))


def entry(path: Path) -> dict[str, object]:
    return {"bytes": path.stat().st_size, "sha256": sha256_hex(path.read_bytes())}


def test_what_is_loaded_is_what_was_saved(folder: Path) -> None:
    checkpoint = load_checkpoint(folder, seal=VAULT)
    assert checkpoint.metadata == METADATA
    assert checkpoint.arrays.keys() == ARRAYS.keys()
    for name, arrays in ARRAYS.items():
        assert checkpoint.arrays[name].keys() == arrays.keys()
        for key, array in arrays.items():
            loaded = checkpoint.arrays[name][key]
            assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
            assert loaded.tobytes() == array.tobytes()
            assert loaded.flags.writeable


def test_nothing_lies_there_in_the_clear(folder: Path) -> None:
    data = b"".join(path.read_bytes() for path in folder.iterdir())
    for clear in (b"weight", b"bias", b"loss", ARRAYS["model"]["weight"].tobytes()):
        assert clear not in data


def test_another_key_opens_nothing(folder: Path) -> None:
    with pytest.raises(VaultError, match="with this key, got another key or purpose"):
        load_checkpoint(folder, seal=Vault(bytes(32)))


def test_without_a_key_a_sealed_checkpoint_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="in the clear at .*, got one sealed"):
        load_checkpoint(folder)


def test_a_service_takes_no_checkpoint_in_the_clear(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "clear", ARRAYS, METADATA)
    with pytest.raises(CheckpointError, match="sealed at .*, got one in the clear"):
        load_checkpoint(tmp_path / "clear", seal=VAULT)


def test_a_file_of_another_checkpoint_is_refused(folder: Path) -> None:
    """Both are sealed with the same key, for the same purpose; the metadata knows its files."""
    other = folder.with_name("round-000013")
    changed = {**ARRAYS, "model": {"weight": np.zeros(3)}}
    save_checkpoint(other, changed, METADATA, seal=VAULT)
    shutil.copy(other / "model.sealed", folder / "model.sealed")
    files = json.loads((folder / MANIFEST).read_bytes())["files"]
    edit(folder, files=files | {"model.sealed": entry(folder / "model.sealed")})
    with pytest.raises(CheckpointError, match="expected the files that were sealed"):
        load_checkpoint(folder, seal=VAULT)


def test_a_file_in_the_clear_beside_sealed_metadata_is_refused(folder: Path) -> None:
    clear = folder.with_name("clear")
    save_checkpoint(clear, ARRAYS, METADATA)
    for name in ("model", "strategy", "nothing"):
        (folder / f"{name}.sealed").unlink()
        shutil.copy(clear / f"{name}.safetensors", folder)
    edit(folder, files=json.loads((clear / MANIFEST).read_bytes())["files"])
    with pytest.raises(CheckpointError, match="expected the files that were sealed"):
        load_checkpoint(folder, seal=VAULT)


@pytest.mark.parametrize("sealed", ["", "!", base64.b64encode(bytes(200)).decode()])
def test_metadata_that_was_not_sealed_is_refused(folder: Path, sealed: str) -> None:
    edit(folder, sealed=sealed)
    with pytest.raises((CheckpointError, VaultError)):
        load_checkpoint(folder, seal=VAULT)


def test_two_arrays_cannot_change_places(tmp_path: Path) -> None:
    path = tmp_path / "a.sealed"
    write_sealed_arrays(path, {"a": np.zeros(4), "b": np.ones(4)}, VAULT, "test")
    blobs, data = [], path.read_bytes()
    while data:
        length = 8 + int.from_bytes(data[:8], "little")
        blobs.append(data[:length])
        data = data[length:]
    path.write_bytes(blobs[0] + blobs[2] + blobs[1])
    with pytest.raises(VaultError, match="another key or purpose"):
        read_sealed_arrays(path, VAULT, "test")


def test_a_cut_or_lengthened_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.sealed"
    write_sealed_arrays(path, {"a": np.zeros(4)}, VAULT, "test")
    whole = path.read_bytes()
    for cut in (0, 4, 8, 50, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises((CheckpointError, VaultError)):
            read_sealed_arrays(path, VAULT, "test")
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="expected 1 arrays in .*, got more"):
        read_sealed_arrays(path, VAULT, "test")
