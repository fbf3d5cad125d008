"""Many simulated sites cost what they do, not what they are."""

import re
from pathlib import Path

import pytest
from torch import nn

from core.blueprint import Blueprint
from tests.support.command import simulate
from tests.support.federation import FEDERATION, write_federation, write_records

NUM_SITES = 60


def test_models_follow_the_workers_and_not_the_sites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    original = Blueprint.build

    def counted(self: Blueprint) -> nn.Module:
        built.append(1)
        return original(self)

    monkeypatch.setattr(Blueprint, "build", counted)
    names = [f"site-{number:03d}" for number in range(NUM_SITES)]
    head = re.sub(r"\[\[sites\]\][^\[]+", "", FEDERATION[: FEDERATION.index("[simulation]")])
    members = "".join(f'[[sites]]\nname = "{name}"\nnum_examples = 8\n' for name in names)
    partition = """
[simulation.partition]
data = { format = "jsonl", path = "all.jsonl", columns = { text = "text", label = "label" } }
policy = { max_epsilon = 1000.0 }
"""
    config = write_federation(tmp_path / "in", federation=head + members + partition)
    write_records(tmp_path / "in/all.jsonl", seed=5, count=8 * NUM_SITES)
    summary = simulate(config, tmp_path / "out", "federation.num_rounds=1")
    assert sum(row["rounds"] for row in summary["sites"].values()) == NUM_SITES
    assert len(built) < 10
