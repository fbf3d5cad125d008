"""The benchmark of secure aggregation is a program that runs, and compares like with like."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks/secure_aggregation.py"
DIMENSION = 2000


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARK.parent / "parts")
    return importlib.import_module


def test_ours_and_flowers_open_the_same_mean(parts: Any) -> None:
    secagg_attempt, secagg_flower = parts("secagg_attempt"), parts("secagg_flower")
    before, after = secagg_attempt.update_of(DIMENSION)
    update = np.concatenate([after[name] - before[name] for name in sorted(after)])
    limit = float(np.abs(update).max())
    ours = secagg_attempt.run_attempt(4, DIMENSION)
    theirs = secagg_flower.run_attempt(update, [1.0, 0.9, 0.8, 0.7], limit=limit)
    for mean in (ours.mean, theirs.mean):
        assert np.abs(mean - update).max() < 1e-5 * limit
    assert np.abs(update).mean() > 0.1 * limit


def test_every_site_that_stays_is_measured(parts: Any) -> None:
    secagg_attempt = parts("secagg_attempt")
    lost = secagg_attempt.most_drop_outs(5)
    found = secagg_attempt.run_attempt(5, DIMENSION, lost=lost)
    assert lost == 1
    assert len(found.sites) == 4
    for cost in found.sites:
        assert cost.seconds > 0
        assert cost.codec_seconds > 0
        assert cost.bytes_up > 4 * DIMENSION
        assert cost.bytes_down > 0


def test_the_program_prints_figures_with_their_targets() -> None:
    command = [sys.executable, str(BENCHMARK), "--quick", "--only", "masks", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    figures = {one["name"]: one for one in json.loads(done.stdout)["figures"]}
    assert figures["mask_rate"]["target"] == ">= 0.6"
    assert figures["mask_rate"]["value"] > 0
    assert figures["aes_ctr_gigabytes_per_s"]["target"] is None
