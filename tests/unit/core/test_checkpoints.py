"""Checkpoints: written wholly or not at all, and read only when they are whole."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.checkpoints import (
    MANIFEST,
    checkpoint_folder,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from core.digests import canonical_json, json_digest, sha256_hex
from core.errors import CheckpointError

ENDLESS_SAVES = Path(__file__).parents[2] / "support" / "endless_saves.py"
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
    folder = checkpoint_folder(tmp_path / "checkpoints", 12)
    save_checkpoint(folder, ARRAYS, METADATA)
    return folder


def edit_manifest(folder: Path, *, signed: bool = True, **changes: Any) -> None:
    """Changes the manifest; ``signed`` makes its own digest match again."""
    body = json.loads((folder / MANIFEST).read_bytes()) | changes
    if signed:
        del body["sha256"]
        body["sha256"] = json_digest(body)
    (folder / MANIFEST).write_bytes(canonical_json(body))


def replace_file(folder: Path, content: bytes) -> None:
    """Puts ``content`` in the place of model.safetensors, with a manifest that agrees."""
    (folder / "model.safetensors").write_bytes(content)
    files = json.loads((folder / MANIFEST).read_bytes())["files"]
    files["model.safetensors"] = {"bytes": len(content), "sha256": sha256_hex(content)}
    edit_manifest(folder, files=files)


def test_what_is_loaded_is_what_was_saved(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    assert checkpoint.metadata == METADATA
    assert checkpoint.arrays.keys() == ARRAYS.keys()
    for name, arrays in ARRAYS.items():
        assert checkpoint.arrays[name].keys() == arrays.keys()
        for key, array in arrays.items():
            loaded = checkpoint.arrays[name][key]
            assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
            assert loaded.tobytes() == array.tobytes()


def test_the_order_in_memory_and_of_bytes_does_not_matter(tmp_path: Path) -> None:
    # safetensors reads raw memory: without a copy, a transposed array is stored as another one.
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {"transposed": base.T, "strided": base[:, ::2], "big": base.astype(">f4")}
    save_checkpoint(tmp_path / "c", {"model": arrays}, {})
    loaded = load_checkpoint(tmp_path / "c").arrays["model"]
    for key, array in arrays.items():
        np.testing.assert_array_equal(loaded[key], array)


def test_the_same_content_has_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "again", ARRAYS, METADATA)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_an_existing_checkpoint_is_never_overwritten(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected no checkpoint at .*round-000012 yet"):
        save_checkpoint(folder, ARRAYS, {"round": 13})
    assert load_checkpoint(folder).metadata == METADATA


def test_an_existing_empty_folder_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(CheckpointError, match="expected no checkpoint at"):
        save_checkpoint(tmp_path / "c", ARRAYS, {})


@pytest.mark.parametrize("name", ["", "../model", "Model", "a/b", ".hidden", "manifest.json"])
def test_a_file_name_that_could_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected a file name of a-z, 0-9, _ and -, got"):
        save_checkpoint(tmp_path / "c", {name: {}}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["O", "U3", "V2", "M8[s]", "complex128"])
def test_an_array_that_is_not_of_numbers_is_refused(tmp_path: Path, dtype: str) -> None:
    # V2 is what a bfloat16 array of an extension of numpy looks like.
    arrays = {"model": {"x": np.zeros(2, dtype=dtype)}}
    with pytest.raises(CheckpointError, match="expected an array of numbers or booleans for 'x'"):
        save_checkpoint(tmp_path / "c", arrays, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"x": float("nan")}, "got: Out of range float values"),
        ({"x": {1, 2}}, "got: Object of type set"),
        ({"x": (1, 2)}, "got one that JSON would change"),
        ({1: "x"}, "got one that JSON would change"),
    ],
)
def test_metadata_that_is_not_json_is_refused(
    tmp_path: Path, metadata: dict[Any, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=f"expected metadata as a JSON object, {message}"):
        save_checkpoint(tmp_path / "c", ARRAYS, metadata)


def test_a_disk_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match="cannot write the checkpoint") as caught:
        save_checkpoint(tmp_path / "file" / "c", ARRAYS, {})
    assert "room on the disk" in caught.value.hint


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint(tmp_path / "c", ARRAYS, {})
    assert list(tmp_path.iterdir()) == []


def test_everything_is_on_the_disk_before_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_sync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        events.append("renamed")
        return real_rename(path, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    save_checkpoint(tmp_path / "c", ARRAYS, METADATA)
    written = {"model.safetensors", "strategy.safetensors", "nothing.safetensors", MANIFEST}
    assert set(events[:4]) == written
    assert events[4:] == [".unfinished-c", "renamed", tmp_path.name]


@pytest.mark.parametrize("stop_at", range(6))
def test_a_stop_at_any_step_leaves_the_older_checkpoint_or_the_whole_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    save_checkpoint(checkpoint_folder(tmp_path, 1), ARRAYS, {"round": 1})
    calls = iter(range(100))
    real_sync = os.fsync

    def sync(descriptor: int) -> None:
        if next(calls) == stop_at:
            raise KeyboardInterrupt
        real_sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(checkpoint_folder(tmp_path, 2), ARRAYS, {"round": 2})
    monkeypatch.undo()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    # Only the last sync, of the parent folder, comes after the rename.
    assert load_checkpoint(newest).metadata["round"] == (2 if stop_at == 5 else 1)
    save_checkpoint(checkpoint_folder(tmp_path, 3), ARRAYS, {"round": 3})
    assert all(path.name.startswith("round-") for path in tmp_path.iterdir())


def test_kill_minus_nine_leaves_the_newest_checkpoint_loadable(tmp_path: Path) -> None:
    delays = np.random.default_rng(5).uniform(0.0, 0.15, size=5)
    reached = 0
    for delay in delays:
        command = [sys.executable, str(ENDLESS_SAVES), str(tmp_path), str(reached + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told = int(process.stdout.readline())
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            told = max([told, *(int(line) for line in process.stdout if line.endswith("\n"))])
        newest = newest_checkpoint(tmp_path)
        assert newest is not None
        checkpoint = load_checkpoint(newest)
        reached = checkpoint.metadata["round"]
        assert newest == checkpoint_folder(tmp_path, reached)
        assert reached >= told
        for arrays in checkpoint.arrays.values():
            assert all((array == reached).all() for array in arrays.values())


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a checkpoint at .*, got no manifest.json"):
        load_checkpoint(tmp_path / "c")


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "strategy.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected strategy.safetensors in .* is missing"):
        load_checkpoint(folder)


def test_an_unknown_file_is_named(folder: Path) -> None:
    (folder / "evil.py").write_text("")
    with pytest.raises(CheckpointError, match=r"expected nothing more in .*, got evil.py"):
        load_checkpoint(folder)


def test_a_link_in_the_place_of_a_file_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"model.safetensors as a plain file"):
        load_checkpoint(folder)


def test_a_truncated_file_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(
        CheckpointError, match=f"expected {size} bytes in .*model.safetensors, got {size - 1}"
    ):
        load_checkpoint(folder)


def test_every_flipped_byte_is_found(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for position in range(len(content)):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            path.write_bytes(flipped)
            with pytest.raises(CheckpointError, match="expected"):
                load_checkpoint(folder)
        path.write_bytes(content)
    assert load_checkpoint(folder).metadata == METADATA


def test_a_flipped_byte_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors .* its digest differs"):
        load_checkpoint(folder)


def test_an_edited_manifest_is_found(folder: Path) -> None:
    edit_manifest(folder, signed=False, metadata=METADATA | {"round": 13})
    with pytest.raises(CheckpointError, match=r"got an edited or damaged one"):
        load_checkpoint(folder)


def test_another_layout_of_the_same_manifest_is_found(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(CheckpointError, match="got an edited or damaged one"):
        load_checkpoint(folder)


@pytest.mark.parametrize("version", [2, "1", None])
def test_an_unknown_version_is_named(folder: Path, version: object) -> None:
    edit_manifest(folder, schema_version=version)
    with pytest.raises(CheckpointError, match=f"expected schema version 1 .* got {version!r}"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": []},
        {"files": {"../up.safetensors": {"bytes": 1, "sha256": ""}}},
        {"files": {"model.bin": {"bytes": 1, "sha256": ""}}},
        {"files": {"model.safetensors": {"bytes": 1}}},
        {"files": {"model.safetensors": 3}},
        {"metadata": 3},
    ],
)
def test_a_manifest_of_another_shape_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    edit_manifest(folder, **changes)
    with pytest.raises(CheckpointError, match="expected files and metadata in"):
        load_checkpoint(folder)


@given(st.binary(max_size=200) | st.just(b"[" * 100_000) | st.just(b"{}") | st.just(b"[]"))
def test_a_manifest_of_garbage_is_reported(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("garbage")
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match="got other or damaged text"):
        load_checkpoint(folder)


HEADER_LIKE = st.dictionaries(
    st.text(max_size=3),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(
                ["F32", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "C64", "X"]
            ),
            "shape": st.lists(st.integers(-1, 3), max_size=3),
            "data_offsets": st.lists(st.integers(0, 9), min_size=2, max_size=2),
        }
    ),
    max_size=2,
)


def with_header(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


GARBAGE = st.binary(max_size=100) | st.builds(with_header, HEADER_LIKE, st.binary(max_size=9))


@given(GARBAGE)
def test_safetensors_of_garbage_never_raise_a_raw_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("garbage") / "c"
    save_checkpoint(folder, {"model": {}}, {})
    replace_file(folder, content)
    try:
        load_checkpoint(folder)
    except CheckpointError as error:
        assert "cannot read the checkpoint" in error.message  # noqa: PT017


def test_a_dtype_that_numpy_lacks_is_reported(folder: Path) -> None:
    tensor = {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}
    replace_file(folder, with_header({"x": tensor}, b"ab"))
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*bfloat16"):
        load_checkpoint(folder)


def test_the_newest_checkpoint_has_the_highest_round(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    assert newest_checkpoint(tmp_path) is None
    for server_round in (9, 1_000_000, 10, 999_999):
        save_checkpoint(checkpoint_folder(tmp_path, server_round), {}, {})
    assert newest_checkpoint(tmp_path) == tmp_path / "round-1000000"


def test_what_is_not_a_finished_checkpoint_is_skipped(tmp_path: Path) -> None:
    save_checkpoint(checkpoint_folder(tmp_path, 3), {}, {})
    (tmp_path / "round-000004").mkdir()
    (tmp_path / ".unfinished-round-000005").mkdir()
    (tmp_path / "round-6").mkdir()
    (tmp_path / "round-000007").write_text("a file")
    assert newest_checkpoint(tmp_path) == tmp_path / "round-000003"


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for server_round in range(1, 6):
        save_checkpoint(checkpoint_folder(tmp_path, server_round), {}, {})
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000004", "round-000005"]
    prune_checkpoints(tmp_path, keep=2)
    prune_checkpoints(tmp_path / "none", keep=1)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_stop_while_pruning_leaves_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for server_round in (1, 2):
        save_checkpoint(checkpoint_folder(tmp_path, server_round), ARRAYS, {})

    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoints(tmp_path, keep=1)
    assert {path.name for path in tmp_path.iterdir()} == {
        ".unfinished-round-000001",
        "round-000002",
    }


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected to keep 1 checkpoint or more, got 0"):
        prune_checkpoints(tmp_path, keep=0)
