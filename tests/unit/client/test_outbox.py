"""Kept replies: whole, encrypted, for the very same order only, until they are settled."""

import os
from pathlib import Path

import numpy as np
import pytest

from client.outbox import MAX_RUNS, Outbox
from core.array_codec import Encoded, encode_arrays
from core.errors import VaultError
from core.messages import LedgerHead
from privacy.vault import Vault
from tests.support.messages import REPLY, TASK

RUN = TASK.run_id
ARRAYS = encode_arrays(
    {
        "head.bias": np.zeros(3, np.float32),
        "head.weight": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
        "scale": np.array(0.5, np.float32),
    }
)


@pytest.fixture
def vault() -> Vault:
    return Vault(bytes(range(32)))


@pytest.fixture
def outbox(tmp_path: Path, vault: Vault) -> Outbox:
    return Outbox(tmp_path / "outbox", vault)


def test_a_kept_reply_is_found_again_by_another_process(outbox: Outbox, tmp_path: Path) -> None:
    outbox.keep(TASK, REPLY, ARRAYS)
    found = Outbox(tmp_path / "outbox", Vault(bytes(range(32)))).find(TASK)
    assert found is not None
    assert found.reply == REPLY
    assert found.arrays == ARRAYS
    assert all(isinstance(array, Encoded) for array in found.arrays.values())


def test_it_is_addressed_to_the_new_attempt_and_nothing_else_changes(outbox: Outbox) -> None:
    outbox.keep(TASK, REPLY, ARRAYS)
    witness = LedgerHead(sequence=9, digest="9" * 64)
    again = TASK.model_copy(update={"attempt": 5, "ledger_witness": witness})
    found = outbox.find(again)
    assert found is not None
    assert found.reply == REPLY.model_copy(update={"attempt": 5})


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "f" * 16},
        {"server_round": 5},
        {"site": "south"},
        {"arrays_digest": "6" * 64},
        {"task_digest": "6" * 64},
        {"num_examples": 4001},
        {"dp_sgd": None},
        {"terms": TASK.terms.model_copy(update={"num_rounds": 21})},
    ],
)
def test_another_order_finds_nothing(outbox: Outbox, change: dict[str, object]) -> None:
    outbox.keep(TASK, REPLY, ARRAYS)
    assert outbox.find(TASK.model_copy(update=change)) is None


def test_a_later_round_takes_the_place_of_an_earlier_one(outbox: Outbox, tmp_path: Path) -> None:
    later = TASK.model_copy(update={"server_round": 5})
    outbox.keep(TASK, REPLY, ARRAYS)
    outbox.keep(later, REPLY.model_copy(update={"server_round": 5}), ARRAYS)
    assert outbox.find(TASK) is None
    assert outbox.find(later) is not None
    assert len(list((tmp_path / "outbox").iterdir())) == 1


def test_settling_forgets_this_round_and_earlier_ones(outbox: Outbox, tmp_path: Path) -> None:
    outbox.keep(TASK, REPLY, ARRAYS)
    outbox.settle(RUN, TASK.server_round - 1)
    outbox.settle("f" * 16, TASK.server_round)
    assert outbox.find(TASK) is not None
    outbox.settle(RUN, TASK.server_round)
    assert outbox.find(TASK) is None
    assert list((tmp_path / "outbox").iterdir()) == []
    outbox.settle(RUN, TASK.server_round)  # once more: nothing is there


def test_what_lies_on_the_disk_is_private_and_shows_nothing(outbox: Outbox, tmp_path: Path) -> None:
    outbox.keep(TASK, REPLY, ARRAYS)
    file = tmp_path / "outbox" / f"{RUN}.reply"
    assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "outbox").stat().st_mode & 0o777 == 0o700
    data = file.read_bytes()
    assert b"north" not in data
    assert ARRAYS["head.weight"].data[-48:] not in data


def test_it_lies_on_the_disk_before_keep_returns(
    outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File, name and folder, in this order: a crash leaves the earlier reply or this one."""
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        steps.append("name")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    outbox.keep(TASK, REPLY, ARRAYS)
    assert steps == ["file", "name", "folder"]


def test_an_unfinished_file_is_removed_and_the_earlier_reply_stays(
    outbox: Outbox, tmp_path: Path, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.keep(TASK, REPLY, ARRAYS)

    def crash(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", crash)
        with pytest.raises(VaultError, match="No space left on device") as info:
            outbox.keep(TASK.model_copy(update={"server_round": 5}), REPLY, ARRAYS)
    assert "hint: a reply that cannot be kept is not sent" in str(info.value)
    assert len(list((tmp_path / "outbox").iterdir())) == 2
    again = Outbox(tmp_path / "outbox", vault)
    assert len(list((tmp_path / "outbox").iterdir())) == 1
    assert again.find(TASK) is not None


@pytest.mark.parametrize("change", ["cut", "longer", "flipped", "swapped"])
def test_a_changed_file_is_refused(outbox: Outbox, tmp_path: Path, change: str) -> None:
    outbox.keep(TASK, REPLY, ARRAYS)
    file = tmp_path / "outbox" / f"{RUN}.reply"
    data = file.read_bytes()
    changed = {
        "cut": data[:-9],
        "longer": data + b"x",
        "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        "swapped": data[: len(data) // 2] + data[len(data) // 2 + 1 :] + b"x",
    }[change]
    file.write_bytes(changed)
    with pytest.raises(VaultError, match=f"{RUN}.reply: expected") as info:
        outbox.find(TASK)
    assert info.value.hint


def test_an_array_of_an_earlier_saving_does_not_fit_a_later_one(
    outbox: Outbox, tmp_path: Path
) -> None:
    file = tmp_path / "outbox" / f"{RUN}.reply"
    savings = []
    for _ in range(2):
        outbox.keep(TASK, REPLY, ARRAYS)
        savings.append(file.read_bytes())
    header = 8 + int.from_bytes(savings[1][:8], "little")
    assert len(savings[0]) == len(savings[1])
    file.write_bytes(savings[1][:header] + savings[0][header:])
    with pytest.raises(VaultError, match="expected data sealed for 'outbox-array/"):
        outbox.find(TASK)


def test_another_key_opens_nothing(outbox: Outbox, tmp_path: Path) -> None:
    outbox.keep(TASK, REPLY, ARRAYS)
    with pytest.raises(VaultError, match="with this key, got another key"):
        Outbox(tmp_path / "outbox", Vault(bytes(32))).find(TASK)


def test_runs_that_nobody_settles_do_not_fill_the_disk(outbox: Outbox, tmp_path: Path) -> None:
    for number in range(MAX_RUNS + 3):
        run = f"{number:016x}"
        outbox.keep(TASK.model_copy(update={"run_id": run}), REPLY, ARRAYS)
        os.utime(tmp_path / "outbox" / f"{run}.reply", ns=(number, number))
    kept = sorted(path.stem for path in (tmp_path / "outbox").iterdir())
    assert kept == [f"{number:016x}" for number in range(3, MAX_RUNS + 3)]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, vault: Vault) -> None:
    (tmp_path / "outbox").write_text("a file")
    with pytest.raises(VaultError, match="expected to read and write"):
        Outbox(tmp_path / "outbox", vault)
