"""Honest sites and lying ones, behind the real ``ClientApp``, and plans of runs for them.

An honest site's update is a function of the weights, its name and the round, as training under
the test noise key is; its ledger outlives the process, so it is kept outside the grid.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from coordinator.events import RoundEvents, SilentEvents
from coordinator.grids.in_process import InProcessGrid
from coordinator.payload import from_record, to_record
from coordinator.rounds import Evaluator, RunPlan
from core.array_codec import manifest_of
from core.config import FederationConfig
from core.config_files import parse_config
from core.config_sections import MemberSection
from core.digests import arrays_digest
from core.messages import (
    LedgerHead,
    Refusal,
    SpentBudget,
    TrainingTerms,
    TrainReply,
    TrainTask,
    decode,
    encode,
)
from core.model import ModelConfig
from core.update_codec import encode_update

Arrays = Mapping[str, npt.NDArray[Any]]
# What a liar makes of the honest reply's content.
Lie = Callable[[TrainTask, RecordDict], RecordDict]

INITIAL: Arrays = {
    "head.bias": np.zeros(3, np.float32),
    "head.weight": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "scale": np.array(0.5, np.float32),
}


def config_of(sites: Mapping[str, int], num_rounds: int = 3, **sections: Any) -> FederationConfig:
    """A federation's configuration; ``sections`` replace whole sections."""
    document: dict[str, Any] = {
        "federation": {"name": "trial", "num_rounds": num_rounds, "seed": 7},
        "model": {"vocab_size": 8, "max_seq_len": 4, "n_layer": 1, "n_head": 1, "n_embd": 4},
        "task": {"kind": "causal-lm"},
        "train": {"steps_per_round": 2, "global_batch_size": 10, "learning_rate": 0.1},
        "privacy": {"mode": "local", "noise_multiplier": 1.0},
        "sites": [{"name": name, "num_examples": size} for name, size in sites.items()],
    }
    return parse_config(FederationConfig, document | sections, origin="a test")


def terms_of(config: FederationConfig, initial: Arrays) -> TrainingTerms:
    """What the sites of ``config`` are asked."""
    if not isinstance(config.model, ModelConfig):
        raise TypeError("expected a model's shape")
    return TrainingTerms(
        federation=config.federation.name,
        model=config.model,
        base_digest=arrays_digest(initial),
        tokenizer_digest="2" * 64,
        task=config.task,
        train=config.train,
        privacy=config.privacy,
        proximal_mu=config.strategy.proximal_mu,
        num_rounds=config.federation.num_rounds,
        update_encoding=config.transport.update_encoding,
    )


def roster_of(config: FederationConfig) -> dict[int, MemberSection]:
    """The members, as nodes 101, 102, ..."""
    return dict(enumerate(config.sites, start=101))


def plan_of(
    config: FederationConfig,
    *,
    initial: Arrays = INITIAL,
    evaluator: Evaluator | None = None,
    events: RoundEvents | None = None,
) -> RunPlan:
    """A run of ``config``."""
    return RunPlan(
        config=config,
        terms=terms_of(config, initial),
        initial_arrays=initial,
        roster=roster_of(config),
        evaluator=evaluator,
        events=events or SilentEvents(),
    )


def honest_update(arrays: Arrays, site: str, server_round: int) -> dict[str, npt.NDArray[Any]]:
    """The new weights of an honest site."""
    seed = hashlib.sha256(f"{site}/{server_round}".encode()).digest()[:8]
    generator = np.random.default_rng(int.from_bytes(seed, "little"))
    return {
        name: np.asarray(
            array * np.float32(0.9) + generator.standard_normal(array.shape, dtype=np.float32) / 10,
            dtype=np.float32,
        )
        for name, array in arrays.items()
    }


def reply_content(task: TrainTask, arrays: Arrays, sequence: int, **changes: Any) -> RecordDict:
    """The content of a reply to ``task``; ``changes`` replace fields of the ``TrainReply``.

    ``arrays`` are what travels: encoded already.
    """
    fields: dict[str, Any] = {
        "run_id": task.run_id,
        "server_round": task.server_round,
        "attempt": task.attempt,
        "site": task.site,
        "task_digest": task.task_digest,
        "arrays_digest": arrays_digest(arrays),
        "num_examples": task.num_examples,
        "spent": SpentBudget(epsilon=0.1 * sequence, delta=1e-5, private=True),
        "ledger_head": LedgerHead(sequence=sequence, digest=f"{sequence:064x}"),
    }
    reply = TrainReply(**(fields | changes))
    return RecordDict(
        {"reply": ConfigRecord({"reply": encode(reply)}), "arrays": to_record(arrays)}
    )


def refusal_content(task: TrainTask, **changes: Any) -> RecordDict:
    """A site's no."""
    fields: dict[str, Any] = {
        "run_id": task.run_id,
        "server_round": task.server_round,
        "site": task.site,
        "code": "budget-exceeded",
        "message": "expected epsilon of at most 8, got a task that would reach 9",
        "hint": "raise policy.max_epsilon",
    }
    refusal = Refusal(**(fields | changes))
    return RecordDict({"refusal": ConfigRecord({"refusal": encode(refusal)})})


@dataclass
class Sites:
    """The sites of a federation; they outlive the coordinator's grid."""

    initial: Arrays = field(default_factory=lambda: INITIAL)
    lies: dict[str, Lie] = field(default_factory=dict)
    ledgers: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def app(self) -> ClientApp:
        """The app that every site runs."""
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            record = message.content["task"]
            if not isinstance(record, ConfigRecord):
                raise TypeError("expected the task")
            task = decode(TrainTask, record["task"])
            with self.lock:
                self.asked.append((task.site, task.server_round, task.attempt))
                self.ledgers[task.site] = self.ledgers.get(task.site, 0) + 1
            content = self._honest(task, message.content)
            if task.site in self.lies:
                content = self.lies[task.site](task, content)
            return Message(content, reply_to=message)

        return app

    def grid(self, plan: RunPlan, *, workers: int = 2) -> InProcessGrid:
        """A fresh grid with these sites."""
        nodes = {node: {"site": member.name} for node, member in plan.roster.items()}
        return InProcessGrid(self.app(), nodes, workers=workers)

    def _honest(self, task: TrainTask, content: RecordDict) -> RecordDict:
        record = content["arrays"]
        if not isinstance(record, ArrayRecord):
            raise TypeError("expected the weights")
        arrays = from_record(record, manifest_of(self.initial))
        if arrays_digest(arrays) != task.arrays_digest:
            raise ValueError("expected the weights that the task names")
        new = honest_update(arrays, task.site, task.server_round)
        update = encode_update(new, arrays, task.terms.update_encoding)
        return reply_content(task, update, self.ledgers[task.site])
