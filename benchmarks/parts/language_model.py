# ruff: noqa: E402  (the allocator is set before anything heavy is imported)
"""One side of the training workload, round by round, in a process of its own.

    language_model.py cloister|plain --clients 400 --cohort 40 --rounds 20 --folder DIR

Reads a line from stdin before each round, the number of threads or workers to use; does the round
and prints {"seconds": ...}. After the last round it writes the weights to DIR/weights.npz and
prints {"moved": ...}: how far they are from the initial ones.

Both sides train the same model class from the same weights on the same sequences in the same
batches, and average the same cohorts. The plain side is what one would write without any
framework: no ledger, no policy, no checks, no checkpoints, no records; its batches are cut ahead
of time. Ours is the path of ``cloister simulate``.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from core.allocator import keep_freed_memory

keep_freed_memory()  # for both sides, before torch is imported

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client.app import build_client_app
from client.site import Site, Workshop
from coordinator.app import build_server_app, start
from coordinator.events import SilentEvents
from coordinator.grids.in_process import InProcessGrid
from coordinator.orders import sampling_order
from coordinator.rounds import RunPlan
from core.blueprint import Blueprint, training_terms
from core.config import FederationConfig
from core.config_files import parse_config
from core.config_sections import PolicySection
from core.data.dataset import TokenizedDataset
from core.data.records import Record
from core.digests import json_digest
from core.model import ModelConfig
from core.parameters import to_arrays
from core.run_record import RoundResult
from core.tasks.causal_lm import CausalLM
from core.train import epoch_batches
from privacy.ledger import Ledger
from privacy.modes import public_seed

VOCABULARY = 10_000
LENGTH = 20
SEQUENCES = 64
BATCH = 16
STEPS = SEQUENCES // BATCH
LEARNING_RATE = 0.5


class Numbers:
    """A tokenizer for texts that are numbers."""

    vocab_size, pad_id, bos_id, eos_id = VOCABULARY, 0, None, None

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """The numbers."""
        return [int(word) for word in text.split()][:max_tokens]

    def decode(self, tokens: list[int]) -> str:
        """The text."""
        return " ".join(map(str, tokens))

    def digest(self) -> str:
        """Of what it does."""
        return json_digest(["numbers", VOCABULARY])


class Sequences:
    """A site's records: its sequences as text."""

    def __init__(self, sequences: np.ndarray) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: int) -> Record:
        return Record(" ".join(map(str, self._sequences[index])))


def sequences_of(client: int) -> np.ndarray:
    """A client's sequences (64, 20): the next token is mostly a function of the last."""
    generator = np.random.default_rng([7, client])
    tokens = np.empty((SEQUENCES, LENGTH), dtype=np.int64)
    tokens[:, 0] = generator.zipf(1.3, SEQUENCES) % VOCABULARY
    for column in range(1, LENGTH):
        jump = generator.zipf(1.5, SEQUENCES)
        tokens[:, column] = (31 * tokens[:, column - 1] + jump) % VOCABULARY
    return tokens


def configuration(clients: int, cohort: int, rounds: int) -> FederationConfig:
    """The run of both sides."""
    document = {
        "federation": {"name": "language-model", "num_rounds": rounds, "seed": 11},
        "model": {
            "vocab_size": VOCABULARY,
            "max_seq_len": LENGTH,
            "n_layer": 3,
            "n_embd": 96,
            "n_head": 8,
            "n_ff": 1536,
            "position": "learned",
            "norm": "layernorm",
            "activation": "gelu",
            "bias": True,
        },
        "task": {"kind": "causal-lm"},
        "train": {
            "steps_per_round": STEPS,
            "global_batch_size": BATCH,
            "learning_rate": LEARNING_RATE,
            "optimizer": "sgd",
        },
        "privacy": {"mode": "none"},
        "strategy": {"fraction_train": cohort / clients, "min_train_nodes": cohort},
        "sites": [{"name": name_of(n), "num_examples": SEQUENCES} for n in range(clients)],
    }
    return parse_config(FederationConfig, document, origin="benchmark")


def name_of(client: int) -> str:
    """A client's name."""
    return f"client{client:03d}"


def blueprint_of(config: FederationConfig) -> Blueprint:
    """The model and the task of both sides."""
    if not isinstance(config.model, ModelConfig):
        raise TypeError("expected a model's shape")
    task = CausalLM(Numbers(), LENGTH)
    return Blueprint(config.model, config.task, task, 11, (), Numbers().digest(), None)


def wait_for_turn() -> int:
    """Blocks until the other side has had its turn; gives the number of threads to use."""
    return int(sys.stdin.readline())


def say(**fields: float) -> None:
    """Answers."""
    print(json.dumps(fields), flush=True)


def plain_round(model: nn.Module, cohort: list[list[Tensor]]) -> None:
    """One round as one would write it without a framework; ``model`` holds the weights."""
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    total = [torch.zeros_like(weight) for weight in weights]
    for batches in cohort:
        with torch.no_grad():
            for parameter, weight in zip(model.parameters(), weights, strict=True):
                parameter.copy_(weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        for tokens in batches:
            optimizer.zero_grad()
            logits = model(tokens)[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            for sum_, parameter in zip(total, model.parameters(), strict=True):
                sum_ += parameter
    with torch.no_grad():
        for parameter, sum_ in zip(model.parameters(), total, strict=True):
            parameter.copy_(sum_ / len(cohort))


def run_plain(config: FederationConfig, cohort: int) -> dict[str, np.ndarray]:
    """All rounds of the plain loop, and the final weights."""
    blueprint = blueprint_of(config)
    digest = training_terms(config, blueprint).digest()
    model = blueprint.build().train()
    names = [site.name for site in config.sites]
    data = {name_of(n): torch.from_numpy(sequences_of(n)) for n in range(len(names))}
    for server_round in range(1, config.federation.num_rounds + 1):
        chosen = sampling_order(names, config.federation.seed, server_round)[:cohort]
        batches = [
            [
                data[name][indices]
                for indices in epoch_batches(
                    SEQUENCES,
                    BATCH,
                    first_step=(server_round - 1) * STEPS,
                    steps=STEPS,
                    seed=public_seed(digest, name),
                )
            ]
            for name in chosen
        ]
        torch.set_num_threads(wait_for_turn())
        started = time.perf_counter()
        plain_round(model, batches)
        say(seconds=time.perf_counter() - started)
    return to_arrays(model)


class Turns(SilentEvents):
    """Takes turns with the other side between two rounds."""

    def __init__(self) -> None:
        self.arrays: Mapping[str, np.ndarray] = {}
        self._num_rounds = 0
        self._started = 0.0

    def run_started(self, server_round: int, num_rounds: int) -> None:
        """Waits for the first turn."""
        self._num_rounds = num_rounds
        self._wait()

    def round_finished(self, result: RoundResult) -> None:
        """Says how long the round took; round 0, which trains nothing, comes before the run."""
        if result.server_round == 0:
            return
        say(seconds=time.perf_counter() - self._started)
        if result.server_round < self._num_rounds:
            self._wait()

    def _wait(self) -> None:
        wait_for_turn()
        self._started = time.perf_counter()

    def run_finished(self, summary: object, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps the weights."""
        self.arrays = arrays


def run_cloister(config: FederationConfig, folder: Path, workers: int) -> dict[str, np.ndarray]:
    """All rounds of the path of ``cloister simulate``, and the final weights."""
    blueprint = blueprint_of(config)
    terms = training_terms(config, blueprint)
    policy = PolicySection(allowed_tasks=(terms.digest(),), max_epsilon=1, allow_non_private=True)
    sites = {
        site.name: Site(
            name=site.name,
            policy=policy,
            data=TokenizedDataset(Sequences(sequences_of(number)), blueprint.task),
            open_ledger=partial(
                Ledger.open, folder / "sites" / site.name / "ledger.sqlite", site=site.name
            ),
        )
        for number, site in enumerate(config.sites)
    }
    app = build_client_app(
        lambda context: sites[str(context.node_config["site"])],
        Workshop(blueprint, torch.device("cpu")),
    )
    roster = dict(enumerate(config.sites, start=1))
    turns = Turns()
    plan = RunPlan(config, terms, to_arrays(blueprint.build()), roster, events=turns)
    nodes = {node: {"site": member.name} for node, member in roster.items()}
    with InProcessGrid(app, nodes, workers=workers) as grid:
        start(build_server_app(plan, folder / "run"), grid)
    return dict(turns.arrays)


def main() -> None:
    """Runs one side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("cloister", "plain"))
    for name in ("clients", "cohort", "rounds", "workers"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    config = configuration(options.clients, options.cohort, options.rounds)
    initial = to_arrays(blueprint_of(config).build())
    if options.side == "plain":
        final = run_plain(config, options.cohort)
    else:
        final = run_cloister(config, options.folder, options.workers)
    np.savez(options.folder / "weights.npz", **final)
    say(moved=max(float(np.abs(final[name] - initial[name]).max()) for name in initial))


if __name__ == "__main__":
    main()
