"""A whole small federation in files: three sites with their data, as a user would write them."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SITES = ("north", "south", "west")
TEST_KEY = "5e" * 32

FEDERATION = """
[federation]
name = "tiny"
num_rounds = 3
seed = 1

[model]
vocab_size = 300
max_seq_len = 16
n_layer = 1
n_head = 2
n_embd = 16

[task]
kind = "classification"
labels = ["calm", "storm"]

[train]
steps_per_round = 2
global_batch_size = 8
micro_batch_size = 4
learning_rate = 1e-2

[privacy]
noise_multiplier = 1.0
max_grad_norm = 1.0

[strategy]
min_train_nodes = 1
round_timeout_seconds = 60.0

[evaluation.holdout]
format = "jsonl"
path = "holdout.jsonl"
columns = { text = "text", label = "label" }

[[sites]]
name = "north"
num_examples = 40

[[sites]]
name = "south"
num_examples = 40

[[sites]]
name = "west"
num_examples = 40

[simulation]
site_files = ["north.toml", "south.toml", "west.toml"]
"""

SITE = """
[site]
name = "{name}"

[data]
format = "jsonl"
path = "{name}.jsonl"
columns = {{ text = "text", label = "label" }}

[policy]
max_epsilon = 1000.0
max_delta = 1e-5
{policy}
"""


def write_federation(
    folder: Path, *, federation: str = FEDERATION, policies: Mapping[str, str] | None = None
) -> Path:
    """Writes the federation's file, three site files and their data; returns the former's path.

    Args:
        folder: Where; made where it is missing.
        federation: The text of the federation's file.
        policies: More lines of a site's policy, by site.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate((*SITES, "holdout")):
        write_records(folder / f"{name}.jsonl", seed=number)
    for name in SITES:
        policy = (policies or {}).get(name, "")
        (folder / f"{name}.toml").write_text(SITE.format(name=name, policy=policy))
    path = folder / "federation.toml"
    path.write_text(federation)
    return path


def write_records(path: Path, *, seed: int, count: int = 40) -> None:
    """Records whose label shows in the text."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        label = "storm" if rng.integers(2) else "calm"
        sky = "wind and rain" if label == "storm" else "sun and haze"
        lines.append(json.dumps({"text": f"{sky} {rng.integers(100)}", "label": label}))
    path.write_text("\n".join(lines) + "\n")
