# ruff: noqa: E402  (the allocator is set before anything heavy is imported)
"""What the same epsilon buys: noise at each site, noise shared by all sites, and no noise.

    python benchmarks/distributed_dp.py [--quick] [--json] [--sms SMSSpamCollection]

The same records, cut evenly over three and over ten sites; the same model, optimizer, number of
steps, expected examples a step over all sites, and therefore the same noise multiplier:

- local: FedAvg over the sites' own DP-SGD, five steps a round, as in the embedded example;
- distributed: each round one step over the union of the sites, of which one may collude;
- none: FedAvg without privacy, five steps a round.

AdamW, its rate and the clip are the embedded example's own for all sides; nothing was tuned for
any. The sums are formed without masks: masks cancel, so that what is opened is the same
bit for bit. Real data: the UCI SMS Spam Collection, from a byte-level Transformer without any
pretraining. It exits 0 whatever falls short.
"""

import argparse
import hashlib
import logging
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from core.allocator import keep_freed_memory

keep_freed_memory()

import numpy as np
import torch
from parts.report import Report

from coordinator.central_step import CentralStep
from coordinator.evaluation import HoldoutEvaluator
from coordinator.orders import common_sample_rate, dp_sgd_terms
from coordinator.strategies import Contribution, Strategy, StrategyState, build_strategy
from core.blueprint import Blueprint, make_blueprint, training_terms
from core.config import FederationConfig
from core.config_files import parse_config
from core.data.clinic import CLINIC_HOLDOUT, CLINIC_HOSPITALS, CLINIC_LABELS, clinic_source
from core.data.dataset import TokenizedDataset
from core.data.partition import partition
from core.data.records import Record, iterate
from core.messages import AggregationOrder, TrainTask
from core.parameters import load_arrays, to_arrays
from privacy.distributed import grid_of_order
from privacy.modes import PRIVACY_MODES
from privacy.random_source import RandomSource
from privacy.secure_aggregation.fixed_point import FixedPoint

EPSILON: Final = 3.0
DELTA: Final = 1e-5
LOCAL_STEPS: Final = 5
LEARNING_RATE: Final = 1e-2
REPEATS: Final = 2
HOLDOUT_PERCENT: Final = 20


@dataclass(frozen=True)
class Setting:
    """A data set and how it is learned."""

    name: str
    train: Sequence[Record]
    holdout: Sequence[Record]
    labels: tuple[str, ...]
    model: dict[str, Any]
    tokenizer: str
    steps: int
    batch: int
    """Expected examples a step, over all sites."""


def clinic(*, quick: bool) -> Setting:
    """The embedded example, with its own model."""
    train = [one for name in CLINIC_HOSPITALS for one in iterate(clinic_source(name, 0))]
    return Setting(
        name="clinic",
        train=train,
        holdout=list(iterate(clinic_source(CLINIC_HOLDOUT, 0))),
        labels=CLINIC_LABELS,
        model={"vocab_size": 800, "max_seq_len": 48, "n_embd": 64, "n_ff": 64},
        tokenizer="clinic",
        steps=10 if quick else 100,
        batch=120 if quick else 480,
    )


def sms(path: Path, *, quick: bool) -> Setting:
    """Messages, cut to 96 bytes; copies but for case, spaces and digits count once."""
    distinct: dict[str, Record] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        label, _, text = line.partition("\t")
        key = re.sub(r"[\s\d]+", " ", text).strip().casefold()
        distinct.setdefault(key, Record(text=text, label=label))
    parts: tuple[list[Record], list[Record]] = ([], [])
    for key, record in distinct.items():
        digest = hashlib.sha256(key.encode()).digest()
        parts[int.from_bytes(digest[:8], "big") % 100 < HOLDOUT_PERCENT].append(record)
    return Setting(
        name="sms",
        train=parts[0],
        holdout=parts[1],
        labels=("ham", "spam"),
        model={"vocab_size": 260, "max_seq_len": 96, "n_embd": 32, "n_ff": 64},
        tokenizer="bytes",
        steps=10 if quick else 100,
        batch=120 if quick else 480,
    )


class Federation:
    """One side of the comparison: sites, orders and the strategy, without a wire."""

    def __init__(self, setting: Setting, mode: str, sites: int) -> None:
        self.mode, self.distributed = mode, mode == "distributed"
        self.config = _config(setting, mode, sites)
        self.blueprint: Blueprint = make_blueprint(self.config)
        self.terms = training_terms(self.config, self.blueprint)
        self.constants = dp_sgd_terms(self.config, self.config.sites)
        task = self.blueprint.task
        self.data = [
            TokenizedDataset(part, task) for part in partition(setting.train, sites, "iid")
        ]
        self.evaluate = HoldoutEvaluator(
            self.blueprint.build(), task, TokenizedDataset(setting.holdout, task), 10**6, 64
        )
        self.model = self.blueprint.build()
        self.strategy: Strategy = build_strategy(self.config.strategy, self._central)

    def _central(self) -> Strategy:
        sizes = [member.num_examples for member in self.config.sites]
        rate = common_sample_rate(self.config.train.global_batch_size, sizes)
        rounds = self.config.federation.num_rounds
        return CentralStep(self.blueprint.build, self.config.train, rate, rounds)

    def run(self) -> dict[str, float]:
        """Accuracy and ROC-AUC of the final model."""
        arrays, state = to_arrays(self.blueprint.build()), dict[str, Any]()
        for server_round in range(1, self.config.federation.num_rounds + 1):
            arrays, after = self._round(arrays, state, server_round)
            state = dict(after)
        metrics: Any = self.evaluate(arrays)
        return {name: float(metrics[name]) for name in ("accuracy", "roc_auc")}

    def _round(
        self, arrays: dict[str, Any], state: StrategyState, server_round: int
    ) -> tuple[dict[str, Any], StrategyState]:
        contributions, total = [], np.zeros(_dimension(arrays), np.uint32)
        orders = [self._order(number, arrays, server_round) for number in range(len(self.data))]
        for order, data in zip(orders, self.data, strict=True):
            load_arrays(self.model, arrays)
            summed = PRIVACY_MODES[self.mode].train(
                self.model,
                self.blueprint.task,
                data,
                order=order,
                randomness=RandomSource.fresh(),
                executed=lambda _: None,
            )
            if summed is not None:
                total += summed.noised(len(self.data))
            else:
                trained = to_arrays(self.model)
                contributions.append(Contribution(order.site, order.num_examples, trained))
        if self.distributed:
            grid = grid_of_order(orders[0])
            opened = FixedPoint(grid.step, grid.bits).decode(total)
            size = sum(order.num_examples for order in orders)
            contributions = [Contribution("sum", size, _named(opened, arrays))]
        return self.strategy.aggregate(state, server_round, arrays, contributions)

    def _order(self, number: int, arrays: dict[str, Any], server_round: int) -> TrainTask:
        member = self.config.sites[number]
        return TrainTask(
            run_id="0" * 16,
            server_round=server_round,
            attempt=1,
            site=member.name,
            arrays_digest="0" * 64,
            terms=self.terms,
            task_digest="0" * 64,
            num_examples=member.num_examples,
            dp_sgd=self.constants[member.name],
            aggregation=self._aggregation(arrays) if self.distributed else None,
        )

    def _aggregation(self, arrays: dict[str, Any]) -> AggregationOrder:
        return AggregationOrder(
            nonce="0" * 64,
            roster_epoch=1,
            roster_digest="0" * 64,
            members=tuple(sorted(member.name for member in self.config.sites)),
            dimension=_dimension(arrays),
            deadline="2099-01-01T00:00:00Z",
        )

    def noise(self) -> float:
        """Deviation of the noise in one step's mean gradient over all sites, in clips."""
        first = self.constants[self.config.sites[0].name]
        if first is None:
            return 0.0
        sites, batch = len(self.data), self.config.train.global_batch_size
        if not self.distributed:
            return first.noise_multiplier / (batch * math.sqrt(sites))
        honest = grid_of_order(self._order(0, to_arrays(self.model), 1)).honest(sites)
        return first.noise_multiplier * math.sqrt(sites / honest) / batch


def _config(setting: Setting, mode: str, sites: int) -> FederationConfig:
    distributed = mode == "distributed"
    local_steps = 1 if distributed else LOCAL_STEPS
    public = round(len(setting.train) / sites, -1)
    privacy: dict[str, Any] = {"mode": mode}
    if mode != "none":
        privacy |= {
            "target_epsilon": EPSILON,
            "target_delta": DELTA,
            "max_grad_norm": 0.5,
            "gradient_mode": "one_backward",
        }
    document: dict[str, Any] = {
        "federation": {
            "name": setting.name,
            "num_rounds": setting.steps // local_steps,
            "seed": 7,
        },
        "model": {
            "n_layer": 1,
            "n_head": 4,
            "causal": False,
            "position": "none",
            "norm": "layernorm",
            "bias": True,
            "activation": "gelu",
            **setting.model,
        },
        "tokenizer": {"kind": setting.tokenizer},
        "task": {"kind": "classification", "labels": list(setting.labels)},
        "train": {
            "steps_per_round": local_steps,
            "global_batch_size": setting.batch if distributed else setting.batch // sites,
            "micro_batch_size": 64,
            "learning_rate": LEARNING_RATE,
            "schedule": "cosine",
            "warmup_steps": 5,
        },
        "privacy": privacy,
        "strategy": {"name": "central" if distributed else "fedavg"},
        "sites": [
            {"name": f"site-{number:02}", "num_examples": int(public)} for number in range(sites)
        ],
    }
    if distributed:
        document["secure_aggregation"] = {}
    return parse_config(FederationConfig, document, origin="the benchmark")


def _dimension(arrays: dict[str, Any]) -> int:
    return sum(array.size for array in arrays.values())


def _named(values: Any, like: dict[str, Any]) -> dict[str, Any]:
    """A vector, cut into arrays by sorted name."""
    named, start = {}, 0
    for name in sorted(like):
        size = like[name].size
        named[name] = values[start : start + size].reshape(like[name].shape)
        start += size
    return named


def measure(report: Report, setting: Setting, *, repeats: int) -> None:
    """All sides of one data set."""
    for sites in (3, 10):
        for mode in ("local", "distributed", "none"):
            print(f"{setting.name}: {sites} sites, {mode}", file=sys.stderr, flush=True)
            side = Federation(setting, mode, sites)
            # Fresh noise each time; without any, the result is the same each time.
            runs = [side.run() for _ in range(1 if mode == "none" else repeats)]
            name = f"{setting.name}_{sites}_{mode}"
            report.add(f"{name}_accuracy", [one["accuracy"] for one in runs], "")
            report.add(f"{name}_roc_auc", [one["roc_auc"] for one in runs], "")
            report.add(f"{name}_noise", [1e3 * side.noise()], "1e-3 C")
    report.notes.append(
        f"{setting.name}: {len(setting.train)} records, {len(setting.holdout)} in the holdout, "
        f"{setting.steps} steps of {setting.batch} expected examples, epsilon {EPSILON:g} at "
        f"delta {DELTA:g}"
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Noise at each site and shared by all sites.")
    parser.add_argument("--quick", action="store_true", help="a minute; the figures mean nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--sms", type=Path, help="the file SMSSpamCollection, for real data")
    parser.add_argument("--only-sms", action="store_true", help="leave the embedded example out")
    parser.add_argument("--steps", type=int, help="steps of a run")
    parser.add_argument("--batch", type=int, help="expected examples a step, over all sites")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="runs of each private side")
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # no time is measured, and threads would only wait for each other
    report = Report()
    settings = [] if options.only_sms else [clinic(quick=options.quick)]
    if options.sms is None:
        report.leave_out(["sms"], "no file: --sms SMSSpamCollection")
    else:
        settings.append(sms(options.sms, quick=options.quick))
    for setting in settings:
        sized = replace(
            setting,
            steps=options.steps or setting.steps,
            batch=options.batch or setting.batch,
        )
        measure(report, sized, repeats=1 if options.quick else options.repeats)
    report.print(("cloister", "torch", "opacus", "dp-accounting"), as_json=options.json)


if __name__ == "__main__":
    main()
