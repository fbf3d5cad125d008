"""The example with a planted bias: what its script writes is what it says."""

import json
from pathlib import Path

from core.config import FederationConfig
from core.config_files import load_config
from core.data.clinic import CLINIC_HOSPITALS, clinic_source
from core.data.records import iterate
from tests.support.examples import script


def test_the_script_damages_labels_of_one_group_alone_and_its_federation_loads(
    tmp_path: Path,
) -> None:
    output = tmp_path / "biased"
    done = script("audit/planted_bias.py", output, "--rate", "0.4")
    assert done.returncode == 0, done.stderr
    elders = damaged = 0
    for hospital in CLINIC_HOSPITALS:
        lines = (output / f"{hospital}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        for row, record in zip(rows, iterate(clinic_source(hospital, 0)), strict=True):
            assert row["text"] == record.text
            if row["age_group"] == "elder":
                elders += 1
                damaged += row["label"] != record.label
            else:
                assert row["label"] == record.label
    assert 0.36 < damaged / elders < 0.44
    config = load_config(FederationConfig, output / "federation.toml")
    assert config.audit.attributes.keys() == {"sex", "age_group"}


def test_the_script_refuses_a_folder_that_is_there_and_a_group_that_nobody_is_of(
    tmp_path: Path,
) -> None:
    assert "does not exist yet" in script("audit/planted_bias.py", tmp_path).stderr
    done = script("audit/planted_bias.py", tmp_path / "new", "--group", "nobody")
    assert done.returncode == 1
    assert "expected a group of age_group" in done.stderr
    assert not (tmp_path / "new").exists()
