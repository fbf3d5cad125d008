"""``release.json``: there only where the newest audit released the model."""

import json
from pathlib import Path

import pytest

from cli.main import main
from tests.support.audited import simulated_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = simulated_run(tmp_path, overrides={"federation.num_rounds": "1"})
    (folder / "release.json").write_text("{}")
    return folder


def test_an_audit_that_cannot_begin_leaves_no_older_release(run: Path) -> None:
    header = json.loads((run / "run.json").read_bytes())
    header["config"]["audit"]["gates"] = {"conformance": False}
    (run / "run.json").write_text(json.dumps(header))
    assert main(["audit", "run", str(run), "--suite", "quick"], own_process=False) != 0
    assert not (run / "release.json").exists()


def test_an_audit_without_time_releases_nothing(run: Path) -> None:
    command = ["audit", "run", str(run), "--suite", "conformance", "--time-limit", "0.001"]
    assert main(command, own_process=False) == 4
    assert not (run / "release.json").exists()


def test_a_report_that_is_there_is_noticed_before_the_audit(run: Path) -> None:
    (run / "audit-quick").mkdir()
    assert main(["audit", "run", str(run), "--suite", "quick"], own_process=False) not in (0, 4)
    assert (run / "release.json").exists()
