"""Finished runs for the audit to look at: a tiny federation with groups, simulated for real."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from audit.subject import Subject, open_subject
from cli.main import main
from tests.support.federation import FEDERATION, SITES, write_federation

AUDIT = """
[audit]
holdout_fraction = 0.3

[audit.attributes]
sex = ["female", "male"]
"""
COLUMNS = 'columns = { text = "text", label = "label", person = "person", groups = ["sex"] }'


def write_grouped(path: Path, *, seed: int, count: int = 48) -> None:
    """Records of persons with a sex, whose label shows in the text."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        label = "storm" if rng.integers(2) else "calm"
        sky = "wind and rain" if label == "storm" else "sun and haze"
        record = {
            "text": f"{sky} {rng.integers(1000)}",
            "label": label,
            "person": f"p{number}",
            "sex": "female" if rng.integers(2) else "male",
        }
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")


def write_audited(
    folder: Path, *, federation: str = FEDERATION, audit: str = AUDIT, count: int = 48
) -> Path:
    """Writes a federation whose sites have ``count`` records with groups; returns its file."""
    path = write_federation(folder, federation=federation + audit)
    for number, name in enumerate((*SITES, "holdout")):
        write_grouped(folder / f"{name}.jsonl", seed=number, count=count)
    plain = 'columns = { text = "text", label = "label" }'
    for file in (path, *(folder / f"{name}.toml" for name in SITES)):
        file.write_text(file.read_text().replace(plain, COLUMNS))
    return path


def simulated_run(
    folder: Path,
    *,
    overrides: Mapping[str, str] | None = None,
    federation: str = FEDERATION,
    count: int = 48,
) -> Path:
    """Simulates such a federation to its end; returns the run's directory."""
    config = write_audited(folder / "federation", federation=federation, count=count)
    sets = [
        item for key, value in (overrides or {}).items() for item in ("--set", f"{key}={value}")
    ]
    output = folder / "run"
    command = ["simulate", "--config", str(config), "--output", str(output), "--json", *sets]
    assert main(command, own_process=False) == 0
    return output


def simulated_subject(folder: Path, **settings: object) -> Subject:
    """The same, opened for an audit."""
    return open_subject(simulated_run(folder, **settings))  # type: ignore[arg-type]
