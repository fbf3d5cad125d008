"""Runs in real processes, killed with kill -9 and started again."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.command import COMMAND, environment, simulate
from tests.support.federation import FEDERATION, TEST_KEY, write_federation

TEST_NOISE = f'simulation.test_noise_key="{TEST_KEY}"'


def kill_at(folder: Path, text: str, command: list[str]) -> None:
    """Starts a run and kills it as soon as its record holds ``text``."""
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    record = folder / "record.jsonl"
    deadline = time.monotonic() + 120
    try:
        while not (record.exists() and text in record.read_text()):
            assert process.poll() is None, "it ended before the moment to kill it came"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param('"attempt":1,"kind":"attempt","server_round":1,', id="sites-at-work-round-1"),
        pytest.param('"kind":"round","metrics"', id="before-round-1"),
        pytest.param('"attempt":1,"kind":"attempt","server_round":3,', id="sites-at-work-round-3"),
    ],
)
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, moment: str) -> None:
    config = write_federation(tmp_path / "in")
    whole = simulate(config, tmp_path / "whole", TEST_NOISE)
    folder = tmp_path / "killed"
    command = [*COMMAND, "simulate", "--config", str(config), "--output", str(folder)]
    kill_at(folder, moment, [*command, "--set", TEST_NOISE])
    resumed = simulate(config, folder, TEST_NOISE)
    assert resumed["weights_digest"] == whole["weights_digest"]
    assert resumed["server_round"] == 3
    rounds = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    applied = [line["server_round"] for line in rounds if line["kind"] == "round"]
    assert applied == sorted(set(applied))


def test_with_real_noise_a_repeated_round_is_debited_again(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    folder = tmp_path / "killed"
    command = [*COMMAND, "simulate", "--config", str(config), "--output", str(folder)]
    kill_at(folder, '"kind":"attempt","server_round":2,', command)
    summary = simulate(config, folder)
    uninterrupted = simulate(config, tmp_path / "whole")
    for site, row in summary["sites"].items():
        assert row["epsilon"] >= uninterrupted["sites"][site]["epsilon"] - 1e-9
    attempts = [
        json.loads(line)["attempt"]
        for line in (folder / "record.jsonl").read_text().splitlines()
        if '"kind":"attempt","server_round":2,' in line
    ]
    assert attempts == [1, 2]


@pytest.mark.parametrize("strategy", ["fedprox", "fedavgm", "fedadam", "fedyogi"])
def test_each_strategy_resumes_bit_for_bit(tmp_path: Path, strategy: str) -> None:
    text = FEDERATION.replace("[strategy]", f'[strategy]\nname = "{strategy}"\nproximal_mu = 0.1')
    config = write_federation(tmp_path / "in", federation=text)
    whole = simulate(config, tmp_path / "whole", TEST_NOISE)
    folder = tmp_path / "killed"
    command = [*COMMAND, "simulate", "--config", str(config), "--output", str(folder)]
    kill_at(folder, '"kind":"attempt","server_round":2,', [*command, "--set", TEST_NOISE])
    assert simulate(config, folder, TEST_NOISE)["weights_digest"] == whole["weights_digest"]
