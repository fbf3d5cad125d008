import gc
import logging
from pathlib import Path

import pytest
from flwr.serverapp import ServerApp

from coordinator.app import build_server_app, start
from core.errors import RunError
from core.run_record import read_record
from tests.support.sites import Sites, config_of, plan_of


def test_the_server_app_runs_the_plan_on_a_grid_without_flowers_chatter(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(config_of({"north": 100, "south": 300}, num_rounds=2))
    app = build_server_app(plan, tmp_path / "run", run_id="0" * 16)
    flower = logging.getLogger("flwr")
    before = flower.level
    try:
        with Sites().grid(plan) as grid:
            start(app, grid)
    finally:
        flower.setLevel(before)

    assert isinstance(app, ServerApp)
    record = read_record(tmp_path / "run")
    assert record.header["run_id"] == "0" * 16
    assert len(record.rounds) == 3
    out, err = capfd.readouterr()
    assert out == ""
    assert "aggregate_train" not in err


def test_what_the_round_loop_raises_comes_through(tmp_path: Path) -> None:
    plan = plan_of(config_of({"north": 100}), initial={})
    with (
        Sites().grid(plan) as grid,
        pytest.raises(RunError, match="expected initial weights, got none"),
    ):
        start(build_server_app(plan, tmp_path), grid)


def test_the_garbage_collector_leaves_what_was_there_alone_during_the_run_only(
    tmp_path: Path,
) -> None:
    frozen = []

    def evaluator(arrays: object) -> dict[str, float]:
        frozen.append(gc.get_freeze_count())
        return {}

    plan = plan_of(config_of({"north": 100}, num_rounds=1), evaluator=evaluator)
    with Sites().grid(plan) as grid:
        start(build_server_app(plan, tmp_path / "run"), grid)

    assert min(frozen) > 10_000
    assert gc.get_freeze_count() == 0
