"""`cloister simulate` with each encoding of updates, from one end to the other."""

import json
from pathlib import Path

import numpy as np
import pytest

from core.checkpoints import load_checkpoint, newest_checkpoint
from tests.support.command import cloister, simulate
from tests.support.federation import TEST_KEY, write_federation

TEST_NOISE = f'simulation.test_noise_key="{TEST_KEY}"'


def encoding_of(name: str) -> str:
    return f'transport.update_encoding="{name}"'


def task_hash(config: Path, encoding: str) -> str:
    shown = cloister("simulate", "--config", config, "--print-task", "--set", encoding_of(encoding))
    assert shown.returncode == 0, shown.stderr
    task = json.loads(shown.stdout)
    assert task["terms"]["update_encoding"] == encoding
    return str(task["task"])


@pytest.mark.parametrize("encoding", ["fp32", "bf16", "int8"])
def test_a_run_ends_and_repeats_to_the_last_bit(tmp_path: Path, encoding: str) -> None:
    config = write_federation(tmp_path / "in")
    summaries = [
        simulate(
            config,
            tmp_path / name,
            TEST_NOISE,
            encoding_of(encoding),
            f"simulation.workers={workers}",
        )
        for name, workers in (("one", 1), ("two", 2))
    ]
    assert summaries[0]["weights_digest"] == summaries[1]["weights_digest"]
    for row in summaries[0]["sites"].values():
        assert (row["rounds"], row["rejected"]) == (3, 0)
    newest = newest_checkpoint(tmp_path / "one" / "checkpoints")
    assert newest is not None
    weights = load_checkpoint(newest).arrays["model"]
    assert all(array.dtype == np.float32 for array in weights.values())


@pytest.mark.parametrize("encoding", ["bf16", "int8"])
def test_epsilon_is_that_of_fp32(tmp_path: Path, encoding: str) -> None:
    config = write_federation(tmp_path / "in")
    spent = [
        {
            site: (row["epsilon"], row["private"])
            for site, row in simulate(config, tmp_path / name, encoding_of(name))["sites"].items()
        }
        for name in ("fp32", encoding)
    ]
    assert spent[0] == spent[1]
    assert all(private for _, private in spent[1].values())


def test_a_site_that_approved_one_encoding_refuses_another(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    hashes = [task_hash(config, name) for name in ("fp32", "bf16", "int8")]
    assert len(set(hashes)) == 3
    write_federation(tmp_path / "in", policies={"west": f'allowed_tasks = ["{hashes[0]}"]'})
    summary = simulate(config, tmp_path / "out", encoding_of("int8"))
    assert summary["sites"]["west"]["refusals"] == 3
    assert summary["sites"]["north"]["rounds"] == 3


def test_a_run_does_not_go_on_with_another_encoding(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    simulate(config, tmp_path / "out")
    other = cloister(
        "simulate", "--config", config, "--output", tmp_path / "out", "--set", encoding_of("bf16")
    )
    assert other.returncode == 1
    assert "configuration" in other.stderr


def test_an_unknown_encoding_is_a_usage_error(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    refused = cloister("simulate", "--config", config, "--set", encoding_of("fp8"))
    assert refused.returncode == 2
    assert "transport.update_encoding" in refused.stderr
    assert "'fp32', 'bf16' or 'int8'" in refused.stderr
