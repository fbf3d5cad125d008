"""The GPU benchmark is a program that runs: on the CPU with a tiny model, and without a GPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARK = Path(__file__).parents[2] / "benchmarks/dp_gpu.py"


def figures(*options: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Values and reasons by name; the program must exit 0."""
    command = [sys.executable, str(BENCHMARK), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    values = {one["name"]: one for one in document["figures"]}
    return values, {one["name"]: one["reason"] for one in document["left_out"]}


def test_a_tiny_model_goes_all_the_way_on_the_cpu() -> None:
    modes = ("one_backward_compiled", "one_backward")
    values, left_out = figures("--quick", "--device", "cpu", "--seconds", "250")
    for mode in modes:
        assert values[f"throughput_ratio/{mode}/tiny"]["value"] > 0
        assert values[f"tokens_per_second/{mode}/tiny"]["unit"] == "1/s"
    assert values["throughput_ratio/one_backward_compiled/tiny"]["target"] == ">= 0.9"
    assert values["throughput_ratio/one_backward/tiny"]["target"] is None
    assert set(left_out) == {f"memory_ratio/{mode}/tiny" for mode in modes}


def test_what_there_is_no_time_for_is_left_out_by_name() -> None:
    values, left_out = figures("--device", "cpu", "--seconds", "0")
    assert not values
    assert left_out["throughput_ratio/hooks/tiny"] == "no time was left"
    assert left_out["tokens_per_second/non_private/tiny"] == "no time was left"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    values, left_out = figures("--quick")
    assert not values
    assert set(left_out.values()) == {"no CUDA device; --device cpu tries the program"}
    assert "memory_ratio/one_backward_compiled/27m" in left_out
