"""The calibration is a program that runs: our rules keep their rate, and the common ones do not."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks/calibration.py"
OURS = ("preregistered_grid", "permutation_chi_square", "newcombe_bonferroni")
COMMON = (
    "tf_privacy_bailey",
    "tf_privacy_clopper_pearson",
    "privacy_meter_argmax",
    "four_fifths",
    "gap_above_0.1",
    "bootstrap_max_min",
)


def test_our_rules_keep_their_rate_and_the_common_ones_do_not() -> None:
    command = [sys.executable, str(BENCHMARK), "--json", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    figures = {one["name"]: one for one in json.loads(done.stdout)["figures"]}
    for rule in OURS:
        assert figures[f"false_alarm/{rule}"]["holds"] is True
        assert figures[f"detected/{rule}"]["value"] > 0.5
    for rule in COMMON:
        assert figures[f"false_alarm/{rule}_low"]["value"] > 0.05
    assert "false_alarm/bonferroni_all_thresholds" in figures
