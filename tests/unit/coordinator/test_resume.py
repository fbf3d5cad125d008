"""A coordinator that is stopped at any step and started again ends with the same weights."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import coordinator.aggregation.clear
import coordinator.rounds
import coordinator.state
from coordinator.rounds import run_rounds
from coordinator.run_directory import RunDirectory
from coordinator.state import RunState
from core.digests import arrays_digest
from core.errors import CheckpointError, RunError
from core.run_record import read_record
from tests.support.sites import INITIAL, Sites, config_of, plan_of

THREE = {"north": 100, "south": 300, "west": 50}


class Killed(BaseException):
    """Stands for kill -9: nothing of ours may catch it."""


def _config(name: str = "fedadam", num_rounds: int = 4) -> Any:
    return config_of(
        THREE, num_rounds=num_rounds, strategy={"name": name, "server_learning_rate": 0.1}
    )


def _run(config: Any, sites: Sites, folder: Path) -> RunState:
    plan = plan_of(config, evaluator=lambda arrays: {"loss": float(abs(arrays["scale"]))})
    opened = RunDirectory.open(
        folder, config, task_digest=plan.terms.digest(), run_id="0123456789abcdef"
    )
    with sites.grid(plan) as grid, opened as run:
        return run_rounds(plan, grid, run)


def _killed_at(call: Callable[..., Any], number: int, *, after: bool) -> Callable[..., Any]:
    """``call``, killed before or after its ``number``-th use."""
    used = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal used
        used += 1
        if used == number and not after:
            raise Killed
        result = call(*arguments, **named)
        if used == number:
            raise Killed
        return result

    return wrapped


# Where the coordinator can be stopped: the module and the name that the real step goes by.
STEPS = {
    "restore": (coordinator.rounds, "restore_state"),
    "sending": (coordinator.aggregation.clear, "sort_replies"),
    "saving": (coordinator.rounds, "save_state"),
    "writing": (coordinator.state, "save_checkpoint"),
    "pruning": (coordinator.state, "prune_checkpoints"),
    "recording": (RunDirectory, "append"),
    "aggregation": (coordinator.rounds.build_strategy(_config().strategy).__class__, "aggregate"),
    "evaluation": (coordinator.rounds._RoundLoop, "_evaluate"),
    "summary": (RunDirectory, "write_summary"),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunState, list[Any]]:
    """An uninterrupted run and its recorded rounds."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return _run(_config(), Sites(), folder), read_record(folder).rounds


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("step", STEPS)
def test_stopped_at_any_step_and_started_again_no_bit_differs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[RunState, list[Any]],
    step: str,
    number: int,
    after: bool,
) -> None:
    whole, rounds = uninterrupted
    owner, name = STEPS[step]
    sites = Sites()
    killed = False
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, _killed_at(getattr(owner, name), number, after=after))
        try:
            _run(_config(), sites, tmp_path)
        except Killed:
            killed = True

    resumed = _run(_config(), sites, tmp_path)

    assert killed or number > 1
    assert arrays_digest(resumed.arrays) == arrays_digest(whole.arrays)
    assert arrays_digest(resumed.strategy) == arrays_digest(whole.strategy)
    for one, two in zip(rounds, read_record(tmp_path).rounds, strict=True):
        for key in ("server_round", "used", "weights_digest", "metrics"):
            assert one[key] == two[key]
    # Whatever was sent twice was sent as another attempt.
    assert len(set(sites.asked)) == len(sites.asked)


def test_stopped_in_every_round_no_bit_differs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[RunState, list[Any]],
) -> None:
    whole, _ = uninterrupted
    sites = Sites()
    for _ in range(6):
        with monkeypatch.context() as patch:
            killed = _killed_at(coordinator.rounds.save_state, 1, after=True)
            patch.setattr(coordinator.rounds, "save_state", killed)
            try:
                resumed = _run(_config(), sites, tmp_path / "cut")
            except Killed:
                continue
            break

    assert arrays_digest(resumed.arrays) == arrays_digest(whole.arrays)
    assert [line["server_round"] for line in read_record(tmp_path / "cut").rounds] == list(range(5))


def test_a_finished_run_started_again_asks_nobody(tmp_path: Path) -> None:
    sites = Sites()
    one = _run(_config(), sites, tmp_path)
    asked = len(sites.asked)

    two = _run(_config(), sites, tmp_path)

    assert len(sites.asked) == asked
    assert arrays_digest(one.arrays) == arrays_digest(two.arrays)


def test_rounds_after_a_lost_checkpoint_count_no_more(tmp_path: Path) -> None:
    sites = Sites()
    whole = _run(_config(), sites, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "round-000004")

    again = _run(_config(), sites, tmp_path)

    assert arrays_digest(again.arrays) == arrays_digest(whole.arrays)
    assert ("north", 4, 2) in sites.asked
    rounds = read_record(tmp_path).rounds
    assert [line["server_round"] for line in rounds] == [0, 1, 2, 3, 4]
    assert rounds[-1]["attempts"] == 2


@pytest.mark.parametrize("torn", [0, 9], ids=["lost", "torn"])
@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_round_s_line_that_a_power_failure_took_is_written_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[RunState, list[Any]],
    kept: int,
    torn: int,
) -> None:
    """The disk then holds the record as it was when it was last synced, and a part of the rest."""
    whole, rounds = uninterrupted
    record, sites = tmp_path / "record.jsonl", Sites()
    synced = 0

    def noted(descriptor: int) -> None:
        nonlocal synced
        if record.exists() and os.path.samestat(os.fstat(descriptor), record.stat()):
            synced = record.stat().st_size

    with monkeypatch.context() as patch:
        patch.setattr("coordinator.run_directory.os.fsync", noted)
        killed = _killed_at(RunDirectory.append, 2 * kept + 2, after=True)
        patch.setattr(RunDirectory, "append", killed)
        with pytest.raises(Killed):
            _run(_config(), sites, tmp_path)
    assert json.loads(record.read_bytes().splitlines()[-1])["server_round"] == kept
    assert synced < record.stat().st_size
    os.truncate(record, synced + torn)

    resumed = _run(_config(), sites, tmp_path)

    assert arrays_digest(resumed.arrays) == arrays_digest(whole.arrays)
    for one, two in zip(rounds, read_record(tmp_path).rounds, strict=True):
        for key in ("server_round", "used", "weights_digest", "metrics"):
            assert one[key] == two[key]
    assert len(set(sites.asked)) == len(sites.asked)


def test_what_a_site_may_see_and_what_ends_a_run_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended: list[tuple[str, bool]] = []
    append = RunDirectory.append

    def noted(run: RunDirectory, kind: str, *, sync: bool = True, **fields: Any) -> None:
        appended.append((kind, sync))
        append(run, kind, sync=sync, **fields)

    monkeypatch.setattr(RunDirectory, "append", noted)
    _run(_config(num_rounds=2), Sites(), tmp_path)

    assert appended == [
        ("begun", False),
        ("round", False),
        ("attempt", True),
        ("round", False),
        ("attempt", True),
        ("round", True),
    ]


def test_witnesses_survive_a_restart(tmp_path: Path) -> None:
    """A site whose ledger was reset while the coordinator was away is dropped by name."""
    sites = Sites()
    config = _config(num_rounds=2)
    _run(config, sites, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "round-000002")
    sites.ledgers["north"] = -1

    _run(config, sites, tmp_path)

    (rejected,) = read_record(tmp_path).rounds[-1]["rejected"]
    assert rejected["site"] == "north"
    assert "expected a ledger that continues its entry 1" in rejected["message"]


def test_a_damaged_newest_checkpoint_stops_the_run(tmp_path: Path) -> None:
    _run(_config(), Sites(), tmp_path)
    model = tmp_path / "checkpoints" / "round-000004" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"\xff")

    with pytest.raises(CheckpointError, match="digest"):
        _run(_config(), Sites(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run_id": "f" * 16}, "expected a checkpoint of run 0123456789abcdef"),
        ({"witnesses": []}, "expected a coordinator's checkpoint"),
        ({"result": {}}, "expected a coordinator's checkpoint"),
        ({}, "expected the checkpoint of round 4 under its own name"),
    ],
)
def test_a_foreign_checkpoint_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    from core.checkpoints import checkpoint_folder, load_checkpoint, save_checkpoint

    _run(_config(), Sites(), tmp_path)
    root = tmp_path / "checkpoints"
    newest = load_checkpoint(checkpoint_folder(root, 4))
    save_checkpoint(checkpoint_folder(root, 5), newest.arrays, {**newest.metadata, **change})

    with pytest.raises(RunError, match=message):
        _run(_config(), Sites(), tmp_path)


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    from core.checkpoints import checkpoint_folder, load_checkpoint, save_checkpoint

    _run(_config(), Sites(), tmp_path)
    root = tmp_path / "checkpoints"
    newest = load_checkpoint(checkpoint_folder(root, 4))
    arrays = {**newest.arrays, "model": {"other": INITIAL["scale"]}}
    save_checkpoint(checkpoint_folder(root, 5), arrays, newest.metadata)

    with pytest.raises(RunError, match="expected the arrays of this model"):
        _run(_config(), Sites(), tmp_path)


def test_an_evaluation_that_fails_costs_no_site_a_second_training(tmp_path: Path) -> None:
    sites = Sites()
    plan = plan_of(_config(num_rounds=1))

    def broken(arrays: Any) -> Any:
        if not sites.asked:
            return {"loss": 1.0}
        raise MemoryError

    for evaluator, expected in ((broken, MemoryError), (lambda arrays: {"loss": 2.0}, None)):
        run_plan = plan_of(plan.config, evaluator=evaluator)
        opened = RunDirectory.open(tmp_path, plan.config, task_digest=plan.terms.digest())
        with sites.grid(run_plan) as grid, opened as run:
            if expected is None:
                run_rounds(run_plan, grid, run)
            else:
                with pytest.raises(expected):
                    run_rounds(run_plan, grid, run)

    assert len(sites.asked) == 3
    assert json.loads((tmp_path / "summary.json").read_text())["metrics"] == {"loss": 2.0}
