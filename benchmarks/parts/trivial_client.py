# ruff: noqa: E402  (the allocator is set before anything heavy is imported)
"""One run of the trivial workload in a process of its own: clients that train nothing.

    trivial_client.py cloister|ray --clients 100 --rounds 5 --workers 2 --folder DIR

Prints one JSON object: the seconds of the rounds after one round of warm-up, and how far the
final weights are from the initial ones.

What each side's client does: it reads 1 MiB of weights in 8 arrays and sends the same values back
in records of its own. Ours also parses and checks its order; its reply names the digest of its
weights, which here is the order's (a client that changes them hashes them, about 0.6 ms a MB).
What each side's coordinator does: FedAvg over all clients. Ours also checks names, shapes, headers
and finiteness of each reply, and writes and syncs a checkpoint and a record of each round.
"""

import argparse
import json
import os
import time
from pathlib import Path

from core.allocator import keep_freed_memory

keep_freed_memory()
# Before Flower and Ray are imported.
os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

NUM_ARRAYS = 8
ARRAY_VALUES = 32_768  # of 4 bytes: 1 MiB in all


def initial_arrays() -> dict[str, np.ndarray]:
    """The weights before the first round."""
    generator = np.random.default_rng(0)
    return {
        f"layer{number}": generator.standard_normal(ARRAY_VALUES, dtype=np.float32)
        for number in range(NUM_ARRAYS)
    }


def run_cloister(clients: int, rounds: int, workers: float, folder: Path) -> tuple[float, object]:
    """The seconds of our round loop on our grid, and the final weights."""
    from client.content import read_arrays, read_order, reply_content
    from coordinator.app import build_server_app, start
    from coordinator.events import SilentEvents
    from coordinator.grids.in_process import InProcessGrid
    from coordinator.rounds import RunPlan
    from core.array_codec import encode_arrays, manifest_of
    from core.config import FederationConfig
    from core.config_files import parse_config
    from core.digests import arrays_digest
    from core.messages import LedgerHead, SpentBudget, TrainingTerms, TrainReply
    from core.model import ModelConfig
    from core.run_record import RoundResult as RoundRecord

    initial = initial_arrays()
    manifest = manifest_of(initial)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        order = read_order(message.content)
        arrays = read_arrays(message.content, manifest)
        reply = TrainReply(
            run_id=order.run_id,
            server_round=order.server_round,
            attempt=order.attempt,
            site=order.site,
            task_digest=order.task_digest,
            arrays_digest=order.arrays_digest,
            num_examples=order.num_examples,
            spent=SpentBudget(epsilon=None, delta=1e-5, private=False),
            ledger_head=LedgerHead(sequence=order.server_round, digest="0" * 64),
        )
        return Message(reply_content(reply, encode_arrays(arrays)), reply_to=message)

    class Final(SilentEvents):
        def round_finished(self, result: RoundRecord) -> None:
            if result.server_round and len(result.used) != clients:
                raise RuntimeError(f"expected {clients} usable replies, got {len(result.used)}")

        def run_finished(self, summary: object, arrays: object) -> None:
            self.arrays = arrays

    def run(num_rounds: int, name: str) -> tuple[float, object]:
        document = {
            "federation": {"name": "trivial", "num_rounds": num_rounds},
            "model": {"vocab_size": 8, "max_seq_len": 4, "n_layer": 1, "n_head": 1, "n_embd": 4},
            "task": {"kind": "causal-lm"},
            "train": {"steps_per_round": 1, "global_batch_size": 1, "learning_rate": 0.1},
            "privacy": {"mode": "none"},
            "strategy": {"name": "fedavg", "min_train_nodes": clients},
            "sites": [{"name": f"site{n}", "num_examples": 1} for n in range(clients)],
        }
        config = parse_config(FederationConfig, document, origin="benchmark")
        if not isinstance(config.model, ModelConfig):
            raise TypeError("expected a model's shape")
        terms = TrainingTerms(
            federation="trivial",
            model=config.model,
            base_digest=arrays_digest(initial),
            tokenizer_digest="0" * 64,
            task=config.task,
            train=config.train,
            privacy=config.privacy,
            proximal_mu=0.0,
            num_rounds=num_rounds,
            update_encoding="fp32",
        )
        roster = dict(enumerate(config.sites, start=1))
        final = Final()
        plan = RunPlan(config, terms, initial, roster, events=final)
        nodes = {node: {"site": member.name} for node, member in roster.items()}
        with InProcessGrid(app, nodes, workers=int(workers)) as grid:
            server = build_server_app(plan, folder / name)
            started = time.perf_counter()
            start(server, grid)
            return time.perf_counter() - started, final.arrays

    run(1, "warm-up")
    return run(rounds, "timed")


def run_ray(clients: int, rounds: int, workers: float) -> tuple[float, object]:
    """The seconds of Flower's own loop on its Ray engine, and the final weights."""
    import logging

    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content["arrays"].to_numpy_ndarrays()
        content = RecordDict(
            {
                "arrays": ArrayRecord(arrays),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )
        return Message(content, reply_to=message)

    server = ServerApp()
    found: list[tuple[float, object]] = []

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        initial = ArrayRecord(list(initial_arrays().values()))
        for num_rounds in (1, rounds):
            strategy = FedAvg(
                fraction_train=1.0,
                fraction_evaluate=0.0,
                min_train_nodes=clients,
                min_available_nodes=clients,
            )
            started = time.perf_counter()
            result = strategy.start(grid=grid, initial_arrays=initial, num_rounds=num_rounds)
            seconds = time.perf_counter() - started
        names = initial_arrays()
        final = dict(zip(names, result.arrays.to_numpy_ndarrays(), strict=True))
        found.append((seconds, final))

    cores = os.cpu_count() or 1
    run_simulation(
        server,
        app,
        num_supernodes=clients,
        backend_config={
            "init_args": {"num_cpus": cores, "include_dashboard": False, "log_to_driver": False},
            "client_resources": {"num_cpus": cores / workers, "num_gpus": 0.0},
        },
    )
    return found[0]


def main() -> None:
    """Runs one side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("cloister", "ray"))
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--workers", type=float, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    if options.side == "cloister":
        seconds, final = run_cloister(
            options.clients, options.rounds, options.workers, options.folder
        )
    else:
        seconds, final = run_ray(options.clients, options.rounds, options.workers)
    error = max(
        float(np.abs(final[name] - array).max()) for name, array in initial_arrays().items()
    )
    print(json.dumps({"seconds": seconds, "error": error}))


if __name__ == "__main__":
    main()
