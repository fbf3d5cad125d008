"""Runs in memory, for attacks on membership: real models, trained on records made up here."""

import hashlib
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from audit.subject import AuditedSite, Subject
from audit.training import DeviceData, train_model
from core.audit_seed import AuditSeed
from core.blueprint import make_blueprint
from core.config import FederationConfig
from core.config_files import parse_config
from core.data.held_out import Split
from core.data.records import Record, RecordSource, Subset
from core.messages import DpSgdTerms
from core.model_folder import LoadedModel
from core.run_record import RunRecord
from core.tokenizer import load_tokenizer
from privacy.accounting import calibrate_noise_multiplier
from privacy.dp_sgd import train_privately
from privacy.random_source import RandomSource

LABELS = ("calm", "storm")
NUM_ROUNDS = 2
STEPS = 60
BATCH = 32


def config_with(
    task: str, sizes: Mapping[str, int], *, epsilon: float | None = None, **sections: Any
) -> FederationConfig:
    """A federation of tiny models: bytes for tokens, 64 wide."""
    text = task == "causal-lm"
    document: dict[str, Any] = {
        "federation": {"name": "trial", "num_rounds": NUM_ROUNDS, "seed": 7},
        "model": {"vocab_size": 300, "max_seq_len": 14, "n_layer": 1, "n_head": 2, "n_embd": 64}
        | {"causal": text},
        "task": {"kind": task} if text else {"kind": task, "labels": list(LABELS)},
        "train": {"steps_per_round": STEPS, "global_batch_size": BATCH, "learning_rate": 0.004},
        "privacy": {"mode": "none"}
        if epsilon is None
        else {"mode": "local", "target_epsilon": epsilon, "target_delta": 1e-5},
        "audit": {"holdout_fraction": 0.4},
        "sites": [{"name": name, "num_examples": size} for name, size in sizes.items()],
    }
    return parse_config(FederationConfig, document | sections, origin="a test")


def random_records(count: int, seed: int, *, prefix: str = "") -> list[Record]:
    """Random letters with random labels: whatever a model knows of one, it learned by heart."""
    rng = np.random.default_rng(seed)
    letters = np.array(list(string.ascii_lowercase))
    return [
        Record(prefix + "".join(rng.choice(letters, size=11)), LABELS[rng.integers(2)])
        for _ in range(count)
    ]


def split_at_random(records: RecordSource, seed: int, *, share: float = 0.4) -> Split:
    """A random share held out."""
    order = np.random.default_rng(seed).permutation(len(records)).tolist()
    cut = int(len(records) * share)
    return Split(Subset(records, order[cut:]), Subset(records, order[:cut]))


def subject_with(
    config: FederationConfig,
    splits: Mapping[str, Split | None],
    *,
    model: nn.Module | None = None,
    seed: int = 0,
    federated: object = None,
) -> Subject:
    """A finished run whose released model is ``model``; the initial one where none is given."""
    blueprint = make_blueprint(config)
    released = blueprint.build() if model is None else model
    released.eval()
    tokenizer = load_tokenizer(config.tokenizer)
    private = config.privacy.target_epsilon
    return Subject(
        folder=Path("nowhere"),
        config=config,
        record=RunRecord({"run_id": "0" * 16}, ()),
        blueprint=blueprint,
        model=LoadedModel(released, blueprint.task, tokenizer, {}),
        sites={
            member.name: AuditedSite(
                name=member.name,
                num_examples=member.num_examples,
                terms=None if private is None else terms_for(private, member.num_examples),
                ledger=None,
                split=splits[member.name],
            )
            for member in config.sites
        },
        seed=AuditSeed(hashlib.sha256(str(seed).encode()).digest()),
        device=torch.device("cpu"),
        federated=federated,
    )


def terms_for(epsilon: float, num_examples: int) -> DpSgdTerms:
    """Constants whose whole run costs a site at most ``epsilon``."""
    rate, largest = BATCH / num_examples, num_examples * 5 // 4
    noise = calibrate_noise_multiplier(epsilon, 1e-5, rate, NUM_ROUNDS * STEPS, largest, largest)
    return DpSgdTerms(
        noise_multiplier=noise, sample_rate=rate, max_batch_size=largest, max_examples=largest
    )


def overfit(subject: Subject, *, rounds: int | None = None) -> nn.Module:
    """A model that trained on the members of the only site, without privacy."""
    (site,) = subject.with_records.values()
    if site.split is None:
        raise TypeError("expected records")
    return train_model(subject, site.split.members, name="released", rounds=rounds)


def trained_privately(subject: Subject, *, key: bytes) -> nn.Module:
    """The same with the run's privacy; the noise follows from ``key``, so that a test can fail."""
    (site,) = subject.with_records.values()
    plan = subject.plan(site)
    if site.split is None or plan is None:
        raise TypeError("expected records, and a run with privacy")
    model = subject.initial_model()
    for number in range(NUM_ROUNDS):
        train_privately(
            model,
            subject.blueprint.task,
            DeviceData(site.split.members, subject),
            plan=plan,
            config=subject.config.train,
            source=RandomSource.for_tests(key, f"round-{number}"),
            first_step=number * STEPS,
            total_steps=NUM_ROUNDS * STEPS,
        )
    return model
