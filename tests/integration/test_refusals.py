"""What a user reads when something is wrong: one message, an exit code, and nothing half done."""

from pathlib import Path

import pytest

from tests.support.command import cloister
from tests.support.federation import FEDERATION, write_federation, write_records


def fails(tmp_path: Path, *arguments: str, code: int, config: Path | None = None) -> str:
    """Runs, expects the exit code, and returns the message; no run may have begun."""
    config = config or write_federation(tmp_path / "in")
    output = tmp_path / "out"
    done = cloister("simulate", "--config", config, "--output", output, *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (output / "record.jsonl").exists()
    return done.stderr


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ('{"text": "x", "label": "calm"\n', 1, "north.jsonl, line 41: expected a JSON object"),
        (
            '{"label": "calm"}\n',
            1,
            "line 41: expected column 'text', got column 'label'",
        ),
        (
            '{"text": "x", "label": "fog"}\n',
            1,
            "line 41: expected one of the task's 2 labels",
        ),
    ],
)
def test_a_broken_record_shows_before_training(
    tmp_path: Path, text: str, code: int, message: str
) -> None:
    config = write_federation(tmp_path / "in")
    with (tmp_path / "in/north.jsonl").open("a") as file:
        file.write(text)
    shown = fails(tmp_path, code=code, config=config)
    assert message in shown


def test_bad_utf_8_shows_before_training(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    with (tmp_path / "in/west.jsonl").open("ab") as file:
        file.write(b'{"text": "\xff", "label": "calm"}\n')
    assert "west.jsonl, line 41: expected UTF-8" in fails(tmp_path, code=1, config=config)


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ("nonsense", 2, "expected --set section.key=value"),
        ("train.colour=1", 2, "train.colour"),
        ("federation.num_rounds=0", 2, "federation.num_rounds"),
        ("model.n_head=3", 2, "n_head"),
        ('simulation.only=["east"]', 2, "expected simulation.only to name sites"),
        ('train.freeze=["nothing"]', 2, "expected train.freeze to name parameters"),
        ("privacy.target_epsilon=3.0", 2, "expected one of `target_epsilon`"),
        ('tokenizer={kind="file", path="missing.json"}', 1, "missing.json"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, change: str, code: int, message: str) -> None:
    assert message in fails(tmp_path, "--set", change, code=code)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    shown = fails(tmp_path, code=2, config=tmp_path / "none.toml")
    assert "expected a configuration file at" in shown
    assert "hint: check the path given to --config" in shown


def test_a_missing_site_file_is_named(tmp_path: Path) -> None:
    text = FEDERATION.replace(', "west.toml"', "")
    config = write_federation(tmp_path / "in", federation=text)
    shown = fails(tmp_path, code=2, config=config)
    assert "expected a site file for each site, got none for west" in shown


def test_another_configuration_in_the_folder_is_refused(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    first = cloister("simulate", "--config", config, "--output", tmp_path / "out")
    assert first.returncode == 0, first.stderr
    record = (tmp_path / "out/record.jsonl").read_bytes()
    second = cloister(
        "simulate", "--config", config, "--output", tmp_path / "out", "--set", "federation.seed=2"
    )
    assert second.returncode == 1
    assert "choose another --output" in second.stderr
    assert (tmp_path / "out/record.jsonl").read_bytes() == record


def test_a_ledger_that_is_cut_missing_or_another_site_s_is_refused(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    out = tmp_path / "out"
    assert cloister("simulate", "--config", config, "--output", out).returncode == 0
    ledger = out / "sites/north/ledger.sqlite"
    ledger.write_bytes(ledger.read_bytes()[:4096])
    shown = cloister("client", "ledger", ledger, "--site", "north")
    assert shown.returncode == 1
    assert "ledger" in shown.stderr
    assert "Traceback" not in shown.stderr
    other = cloister("client", "ledger", out / "sites/south/ledger.sqlite", "--site", "north")
    assert other.returncode == 1
    assert "signed with the key of site 'north'" in other.stderr
    missing = cloister("client", "ledger", out / "none.sqlite", "--site", "north")
    assert "expected a ledger at" in missing.stderr


def test_the_task_that_sites_approve_can_be_read(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    done = cloister("simulate", "--config", config, "--print-task")
    assert done.returncode == 0
    assert '"noise_multiplier": 1.0' in done.stdout
    approved = done.stdout.split('"task": "')[1][:64]
    text = (tmp_path / "in/north.toml").read_text()
    (tmp_path / "in/north.toml").write_text(text + f'allowed_tasks = ["{approved}"]\n')
    assert cloister("simulate", "--config", config, "--output", tmp_path / "a").returncode == 0
    (tmp_path / "in/north.toml").write_text(text + f'allowed_tasks = ["{"0" * 64}"]\n')
    assert cloister("simulate", "--config", config, "--output", tmp_path / "b").returncode == 0
    record = (tmp_path / "b/record.jsonl").read_text()
    assert "expected a task that this site approved" in record


def test_more_records_than_a_site_declared_are_refused_before_any_round(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    write_records(tmp_path / "in/south.jsonl", seed=3, count=51)
    text = fails(tmp_path, code=1, config=config)
    assert "expected at most 50 records at south" in text
    assert "hint: declare a larger num_examples for this site" in text
    assert "51" not in text


def test_a_site_s_own_records_are_no_public_holdout(tmp_path: Path) -> None:
    """Metrics leave without noise, whatever they were computed on."""
    config = write_federation(tmp_path / "in")
    text = fails(tmp_path, "--set", "evaluation.holdout.path=south.jsonl", code=2, config=config)
    assert "expected a public holdout, got the records that a site trains on" in text
