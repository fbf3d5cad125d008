"""`cloister simulate` with secure aggregation: policies, refusals by name, and runs that were
killed in the middle of an attempt."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import cloister, simulate
from tests.support.federation import FEDERATION, SITES, TEST_KEY, write_federation
from tests.support.forked import Forked
from tests.support.kill_points import arm
from tests.support.masked_inputs import check_transcript, keep_inputs
from tests.support.releases import check_releases, debits_by_round, entries_of

SECURE = FEDERATION + "\n[secure_aggregation]\nmax_update_norm = 20.0\n"
ATTEMPT = "coordinator.aggregation.secure:_Attempt"


@pytest.mark.parametrize(
    ("policy", "federation", "message"),
    [
        pytest.param('secure_aggregation = "off"', SECURE, "got one with it", id="off"),
        pytest.param("min_cohort = 4", SECURE, "expected sums of at least 4 sites", id="cohort"),
        pytest.param(
            'secure_aggregation = "required"', FEDERATION, "sees each update", id="required"
        ),
    ],
)
def test_a_policy_refuses_by_name(
    tmp_path: Path, policy: str, federation: str, message: str
) -> None:
    config = write_federation(tmp_path / "in", federation=federation, policies={"west": policy})
    done = cloister("simulate", "--config", config, "--output", tmp_path / "out")
    record = (tmp_path / "out" / "record.jsonl").read_text()
    assert message in record
    assert '"code":"policy-refused"' in record
    # In the clear the others go on; a sum of two would be too few.
    assert done.returncode == (0 if federation is FEDERATION else 1), done.stderr
    if done.returncode:
        assert "west refused (policy-refused)" in done.stderr
    ledger = entries_of(tmp_path / "out/sites/west/ledger.sqlite", "west")
    assert debits_by_round(ledger) == {}


def test_a_policy_that_requires_it_takes_part(tmp_path: Path) -> None:
    policies = dict.fromkeys(SITES, 'secure_aggregation = "required"')
    config = write_federation(tmp_path / "in", federation=SECURE, policies=policies)
    summary = simulate(config, tmp_path / "out")
    assert summary["private"]
    assert {row["rounds"] for row in summary["sites"].values()} == {3}


@pytest.mark.parametrize("strategy", ["fedmedian", "krum"])
def test_a_strategy_that_compares_updates_is_refused_by_name(tmp_path: Path, strategy: str) -> None:
    text = SECURE.replace("[strategy]", f'[strategy]\nname = "{strategy}"').replace(
        "min_train_nodes = 1", "min_train_nodes = 3"
    )
    config = write_federation(tmp_path / "in", federation=text)
    done = cloister("simulate", "--config", config, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert "expected a strategy that works on sums with secure_aggregation" in done.stderr
    assert strategy in done.stderr
    assert not (tmp_path / "out").exists()


def killed(config: Path, folder: Path, inputs: Path, point: str, *overrides: str) -> None:
    """Runs until the process kills itself at ``point``."""
    sets = [item for override in overrides for item in ("--set", override)]
    command = ("simulate", "--config", str(config), "--output", str(folder), *sets)
    log = folder.with_suffix(".log")
    process = Forked(command, log, (partial(keep_inputs, inputs), partial(arm, point)))
    assert process.wait(240) == -9, log.read_text()


def record_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's record."""
    return [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(f"{ATTEMPT}._share@after#2", id="before-the-mark"),
        pytest.param("client.secure_round:SecureRound.mask@after#5", id="between-marks"),
        pytest.param(f"{ATTEMPT}._reveal@after#2", id="after-the-mark"),
    ],
)
def test_a_run_that_was_killed_within_an_attempt_goes_on(tmp_path: Path, point: str) -> None:
    config = write_federation(tmp_path / "in", federation=SECURE)
    inputs, folder = tmp_path / "inputs", tmp_path / "out"
    inputs.mkdir()
    killed(config, folder, inputs, point)
    process = Forked(
        ("simulate", "--config", str(config), "--output", str(folder)),
        tmp_path / "again.log",
        (partial(keep_inputs, inputs),),
    )
    assert process.wait(240) == 0, (tmp_path / "again.log").read_text()
    rounds = [line for line in record_of(folder) if line["kind"] == "round"]
    assert [line["server_round"] for line in rounds] == [0, 1, 2, 3]
    assert [line["attempts"] for line in rounds] == [0, 1, 2, 1]
    transcripts = [line["transcript"] for line in rounds[1:]]
    for transcript in transcripts:
        check_transcript(inputs, transcript)
    for site in SITES:
        entries = entries_of(folder / f"sites/{site}/ledger.sqlite", site)
        check_releases(entries, site, transcripts)
        # Secrets and updates were in memory only: the round is paid for again.
        assert debits_by_round(entries) == {1: 1, 2: 2, 3: 1}


def test_a_run_with_a_test_key_that_was_killed_after_the_mark_is_over(tmp_path: Path) -> None:
    """Its update would be the same again, in another sum."""
    config = write_federation(tmp_path / "in", federation=SECURE)
    inputs, folder = tmp_path / "inputs", tmp_path / "out"
    inputs.mkdir()
    test_noise = f'simulation.test_noise_key="{TEST_KEY}"'
    killed(config, folder, inputs, f"{ATTEMPT}._reveal@after#2", test_noise)
    done = cloister("simulate", "--config", config, "--output", folder, "--set", test_noise)
    assert done.returncode == 1
    assert "refused (already-spent)" in done.stderr
    rounds = [line["server_round"] for line in record_of(folder) if line["kind"] == "round"]
    assert max(rounds) == 1
