"""Simulation: against Flower's Ray engine, and against a plain torch loop.

    python benchmarks/simulation.py [--quick] [--json]

Each side runs in fresh processes (benchmarks/parts/ says what each does), in turns with its rival,
and no time is reported before the results of both were found equal. docs/benchmarks.md has the
figures and how to read them. It exits 0 whatever falls short.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from parts.report import Report

PARTS = Path(__file__).parent / "parts"
CORES = os.cpu_count() or 1
# One more than cores: while a site waits for its ledger to lie on the disk, another trains.
WORKERS = CORES + 1
TOLERANCE = 1e-4
# What `core.allocator` sets for us, set for Ray's own processes as well.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def measure_trivial_client(report: Report, folder: Path, *, quick: bool) -> None:
    """Clients that send back a megabyte of weights: ours against Flower's Ray engine."""
    clients, rounds, pairs = (100, 2, 1) if quick else (100, 5, 5)

    def run(side: str, workers: float) -> float:
        """Milliseconds for each client and round."""
        arguments = {"clients": clients, "rounds": rounds, "workers": workers}
        result = _call("trivial_client.py", side, arguments, folder)
        if not result["error"] < TOLERANCE:
            raise SystemExit(f"{side}: the weights are off by {result['error']}: nothing measured")
        return float(result["seconds"]) / (clients * rounds) * 1e3

    ours_workers = CORES if quick else _best(lambda w: run("cloister", w), (1, CORES, WORKERS))
    if importlib.util.find_spec("ray") is None:
        values = [run("cloister", ours_workers) for _ in range(pairs)]
        report.add("client_round_ms", values, "ms", at_most=1.0)
        names = ("ray_client_round_ms", "ratio_to_ray")
        report.leave_out(names, "ray is not installed: pip install 'cloister[ray]'")
        return
    ray_workers = CORES if quick else _best(lambda w: run("ray", w), (1, CORES, 2 * CORES))
    ours, rays = [], []
    for _ in range(pairs):
        ours.append(run("cloister", ours_workers))
        rays.append(run("ray", ray_workers))
    report.add("client_round_ms", ours, "ms", at_most=1.0)
    report.add("ray_client_round_ms", rays, "ms")
    ratios = [ray / our for our, ray in zip(ours, rays, strict=True)]
    report.add("ratio_to_ray", ratios, "x", at_least=15.0)
    report.notes.append(
        f"trivial client: {clients} clients x {rounds} rounds, {ours_workers:g} worker(s) of ours, "
        f"{ray_workers:g} of Ray's, {pairs} pair(s)"
    )


def measure_language_model(report: Report, folder: Path, *, quick: bool) -> None:
    """A small language model: our whole path against a plain loop without any framework."""
    short, cohort, rounds = (2, 4, 4) if quick else (4, 40, 20)
    # First a short run of both: equal, and then the plain loop's best number of threads.
    check = {"clients": 400, "cohort": short, "rounds": 4}
    plain = Side("plain", folder / "check-plain", check)
    turns = {threads: [plain.turn(threads) for _ in range(2)] for threads in (1, CORES)}
    threads = min(turns, key=lambda key: min(turns[key]))
    ours = Side("cloister", folder / "check-ours", check)
    for _ in range(4):
        ours.turn(1)
    difference = _compare(plain, ours)

    timed = {"clients": 400, "cohort": cohort, "rounds": rounds}
    plain = Side("plain", folder / "plain", timed)
    ours = Side("cloister", folder / "ours", timed)
    seconds: dict[Side, list[float]] = {plain: [], ours: []}
    for number in range(rounds):
        for side in (plain, ours) if number % 2 else (ours, plain):
            seconds[side].append(side.turn(threads))
    difference = max(difference, _compare(plain, ours))
    ratios = [a / b for a, b in zip(seconds[plain], seconds[ours], strict=True)]
    report.add("tasks_per_second", [cohort / s for s in seconds[ours]], "1/s")
    report.add("plain_torch_tasks_per_second", [cohort / s for s in seconds[plain]], "1/s")
    report.add("tasks_ratio_to_plain_torch", ratios, "x", at_least=0.95)
    report.notes.append(
        f"language model: cohort {cohort} of 400, {rounds} rounds in turns, ours with {WORKERS} "
        f"workers of 1 thread, the plain loop with its best of 1 and {CORES} threads: {threads}; "
        f"largest difference of the final weights {difference:.1e}"
    )


class Side:
    """One side of the language model workload: a process that does a round when told to."""

    def __init__(self, side: str, folder: Path, arguments: dict[str, Any]) -> None:
        self._weights = folder / "weights.npz"
        command = _command("language_model.py", side, arguments | {"workers": WORKERS}, folder)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def turn(self, threads: int) -> float:
        """One round; its seconds."""
        if self._process.stdin is None:
            raise SystemExit("expected a side with a pipe")
        self._process.stdin.write(f"{threads}\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def finish(self) -> dict[str, np.ndarray]:
        """The weights after the last round; they must have moved for a comparison to mean much."""
        moved = self._answer()["moved"]
        if self._process.wait() or not moved > 100 * TOLERANCE:
            raise SystemExit(f"expected weights that training moved, got {moved}")
        with np.load(self._weights) as arrays:
            return dict(arrays)

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise SystemExit(f"{self._process.args} ended without an answer")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _compare(plain: Side, ours: Side) -> float:
    """The largest difference of the final weights; no figure is made of results that differ."""
    expected, found = plain.finish(), ours.finish()
    if expected.keys() != found.keys():
        raise SystemExit("expected the same parameters on both sides")
    difference = max(float(np.abs(expected[name] - found[name]).max()) for name in expected)
    if not difference < TOLERANCE:
        raise SystemExit(f"the final weights differ by {difference}: nothing measured")
    return difference


def _best(run: Callable[[float], float], choices: tuple[float, ...]) -> float:
    """The number of workers of the fastest run."""
    return min(choices, key=run)


def _command(script: str, side: str, arguments: dict[str, Any], folder: Path) -> list[str]:
    options = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    return [sys.executable, str(PARTS / script), side, *options, "--folder", str(folder)]


def _call(script: str, side: str, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The last line that the script prints, in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = _command(script, side, arguments, Path(place))
        environment = os.environ | (ALLOCATOR if side == "ray" else {})
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Simulation: against Ray, and against torch.")
    parser.add_argument("--quick", action="store_true", help="less than a minute; rough figures")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--only", choices=("trivial", "language-model"), help="one workload")
    options = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="cloister-benchmark-") as folder:
        if options.only != "language-model":
            measure_trivial_client(report, Path(folder), quick=options.quick)
        if options.only != "trivial":
            measure_language_model(report, Path(folder), quick=options.quick)
    versions_of = ("cloister", "flwr", "numpy", "ray", "torch")
    report.print(versions_of, as_json=options.json)


if __name__ == "__main__":
    main()
