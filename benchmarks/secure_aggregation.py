# ruff: noqa: E402  (threads and allocator are set before anything heavy is imported)
"""Secure aggregation: what it takes of a site, of the coordinator, of the wire and of a round.

    python benchmarks/secure_aggregation.py [--quick] [--json] [--only PART]

Whole attempts in memory by the code of a deployment, Flower's SecAgg+ on the same update in the
same run, and rounds of ten sites over gRPC and TLS. No time is reported before the opened sum was
found equal to the exact integer sum, and Flower's to ours but for its quantisation. All but the
rounds is the processor's time of one thread; nothing in it waits.
docs/benchmarks.md has the figures and how to read them. It exits 0 whatever falls short.
"""

import argparse
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

# One thread, also in numpy's products.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}

from core.allocator import keep_freed_memory

keep_freed_memory()

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from parts import secagg_attempt, secagg_flower
from parts.processes import PARTS, answer, end, start
from parts.report import Report

from privacy.discrete_gaussian import DiscreteGaussian
from privacy.distributed import DistributedGrid
from privacy.random_source import RandomSource
from privacy.secure_aggregation.masks import add_masks

MILLION = 1_000_000
DIMENSIONS = {"1M": MILLION, "10M": 10 * MILLION, "100M": 100 * MILLION}
COHORTS = (3, 10, 32, 100)
# Values of all masks of all sites together; 100 million and 32 sites take a minute or two.
MOST_MASKED = 2 * 10**11
QUICK_MOST_MASKED = 2 * 10**9
ROUND_SITES = 10
FLOWER = ("1M/3", "1M/10", "1M/32", "1M/100", "10M/3", "10M/10", "10M/32", "100M/3", "100M/10")
FLOWER_QUICK = ("1M/3",)


def measure_attempts(report: Report, *, quick: bool) -> None:
    """A site's and the coordinator's time, bytes, and the same of Flower's."""
    secagg_attempt.run_attempt(4, 1000)
    most = QUICK_MOST_MASKED if quick else MOST_MASKED
    for label, dimension in DIMENSIONS.items():
        for size in COHORTS:
            name = f"{label}/{size}"
            if size * size * dimension > most:
                names = (f"site_ms/{name}", f"coordinator_ms/{name}")
                report.leave_out(names, f"{size} sites mask {size} times {label}: too long here")
            else:
                _attempt(report, name, size, dimension, quick=quick)


def _attempt(report: Report, name: str, size: int, dimension: int, *, quick: bool) -> None:
    # One attempt measures every site; small ones are repeated.
    turns = range(1 if quick or size * size * dimension > QUICK_MOST_MASKED else 3)
    attempts = [secagg_attempt.run_attempt(size, dimension) for _ in turns]
    costs = [cost for attempt in attempts for cost in attempt.sites]
    goal = 25 if name == "1M/32" else None
    report.add(f"site_ms/{name}", [1e3 * cost.seconds for cost in costs], "ms", at_most=goal)
    codec = [1e3 * (cost.seconds + cost.codec_seconds) for cost in costs]
    report.add(f"site_with_codec_ms/{name}", codec, "ms")
    _opening(report, f"coordinator_ms/{name}/lost0", attempts)
    if lost := secagg_attempt.most_drop_outs(size):
        fewer = [secagg_attempt.run_attempt(size, dimension, lost=lost) for _ in turns]
        _opening(report, f"coordinator_ms/{name}/lost{lost}", fewer)
    weights = 4 * dimension
    ratios = [(weights + cost.bytes_down + cost.bytes_up) / (2 * weights) for cost in costs]
    report.add(f"bytes_ratio/{name}", ratios, "x", at_most=1.01 if name == "1M/32" else None)
    if name in (FLOWER_QUICK if quick else FLOWER):
        _flower(report, name, size, dimension, attempts[0].mean, codec)
    else:
        report.leave_out([f"flower_ms/{name}"], "Flower takes minutes for it")


def _opening(report: Report, name: str, attempts: list[secagg_attempt.Measured]) -> None:
    report.add(name, [1e3 * attempt.open_seconds for attempt in attempts], "ms")


def _flower(
    report: Report,
    name: str,
    size: int,
    dimension: int,
    ours: "np.ndarray[Any, Any]",
    site_ms: list[float],
) -> None:
    before, after = secagg_attempt.update_of(dimension)
    update = np.concatenate([after[n] - before[n] for n in sorted(after)])
    del before, after
    limit = float(np.abs(update).max())
    context = secagg_attempt.Cohort(size, dimension).context()
    fractions = [context.fraction(member) for member in context.members]
    found = secagg_flower.run_attempt(update, fractions, limit=limit)
    # Both round each site's value to the next step of their grids, or the one after it.
    grids = 2 * limit / secagg_flower.TARGET_RANGE + float.fromhex(context.step)
    gap = float(np.abs(found.mean - ours).max())
    if gap > 2 * grids or not np.abs(ours - update).max() < 2 * grids:
        raise SystemExit(f"{name}: Flower's mean and ours are {gap:g} apart, so not measured")
    milliseconds = [1e3 * seconds for seconds in found.seconds]
    report.add(f"flower_ms/{name}", milliseconds, "ms")
    ratios = [theirs / mine for theirs, mine in zip(milliseconds, site_ms, strict=False)]
    report.add(f"flower_over_site/{name}", ratios, "x")
    report.add(f"flower_coordinator_ms/{name}/lost0", [1e3 * found.open_seconds], "ms")
    weights = 4 * dimension
    sent = [(weights + each) / (2 * weights) for each in found.bytes_per_site]
    report.add(f"flower_bytes_ratio/{name}", sent, "x")


def measure_masks(report: Report, *, quick: bool) -> None:
    """Masking over AES-CTR by itself, in turns."""
    keys, size, turns = 8, MILLION, 5 if quick else 40
    values, zeros, stream = np.zeros(size, np.uint32), bytes(1 << 17), bytearray(1 << 17)

    def raw() -> None:
        for _ in range(keys):
            key = os.urandom(32)
            cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
            for first in range(0, 4 * size, len(zeros)):
                piece = memoryview(zeros)[: 4 * size - first]
                cipher.update_into(piece, stream)

    def ours() -> None:
        add_masks(values, [(os.urandom(32), 1) for _ in range(keys)])

    rates: dict[str, list[float]] = {"raw": [], "ours": []}
    for _ in range(turns + 1):
        for name, run in (("raw", raw), ("ours", ours)):
            rates[name].append(4e-9 * size * keys / _seconds(run))
    pairs = list(zip(rates["ours"], rates["raw"], strict=True))[1:]
    report.add("mask_rate", [mine / aes for mine, aes in pairs], "x", at_least=0.6)
    report.add("mask_gigabytes_per_s", rates["ours"][1:], "GB/s")
    report.add("aes_ctr_gigabytes_per_s", rates["raw"][1:], "GB/s")


def measure_sampler(report: Report, *, quick: bool) -> None:
    """The noise of one site in mode ``distributed``."""
    grid = DistributedGrid(
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        max_batch_size=64,
        dimension=MILLION,
        members=10,
        min_cohort=3,
        colluding_sites=1,
    )
    sampler: DiscreteGaussian = grid.share(10)
    deviation, count = float(sampler.variance) ** 0.5, MILLION if quick else 10 * MILLION
    stream = RandomSource.fresh().stream("noise")
    torch.set_num_threads(1)
    drawn = sampler.sample(stream, count).double()
    if not abs(float(drawn.std()) / deviation - 1) < 0.01:
        raise SystemExit("the sampler's deviation is another: not measured")
    turns = range(3 if quick else 9)
    rates = [count / _seconds(lambda: sampler.sample(stream, count)) / 1e6 for _ in turns]
    report.add("sampler_millions_per_s", rates, "1e6/s", at_least=20)
    report.notes.append(f"sampler: deviation {deviation:.4g} steps, 10 sites of 1M values")


def measure_memory(report: Report, *, quick: bool) -> None:
    """Peaks in fresh processes."""
    for label in ("1M",) if quick else ("10M", "100M"):
        dimension, turns = DIMENSIONS[label], range(1 if quick or label == "100M" else 3)
        site = [_memory("site", dimension) for _ in turns]
        values = [each["bytes"] / dimension for each in site]
        report.add(f"memory_bytes_per_parameter/{label}", values, "B", at_most=4)
        wire = [round(each["bytes_with_wire"] / dimension, 1) for each in site]
        report.add(f"memory_with_wire_bytes_per_parameter/{label}", wire, "B")
        coordinator = [
            round(_memory("coordinator", dimension)["bytes"] / dimension, 1) for _ in turns
        ]
        report.add(f"coordinator_memory_bytes_per_parameter/{label}", coordinator, "B")


def _memory(end: str, dimension: int) -> dict[str, int]:
    command = [sys.executable, str(PARTS / "secagg_memory.py"), end]
    arguments = ["--sites", str(ROUND_SITES), "--dimension", str(dimension)]
    done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
    answer: dict[str, int] = json.loads(done.stdout)
    return answer


def measure_round(report: Report, *, quick: bool) -> None:
    """What four more exchanges add to a round of ten sites."""
    turns, rounds = (1, 2) if quick else (3, 5)
    added: list[float] = []
    seconds: dict[str, list[float]] = {"clear": [], "secure": []}
    for _ in range(turns):
        both = {}
        for mode in seconds:
            with tempfile.TemporaryDirectory(prefix="cloister-benchmark-") as folder:
                found = _rounds(mode, rounds, folder)
            both[mode] = found["seconds"]
            seconds[mode] += found["seconds"]
        pairs = zip(both["secure"], both["clear"], strict=True)
        added += [secure - clear for secure, clear in pairs]
    report.add(f"added_round_s/{ROUND_SITES}", added, "s", at_most=2)
    for mode, values in seconds.items():
        report.add(f"{mode}_round_s/{ROUND_SITES}", values, "s")
    report.notes.append(f"rounds: {found['parameters']} parameters, one step of training a site")


def _rounds(mode: str, rounds: int, folder: str) -> dict[str, Any]:
    common = (mode, "--rounds", str(rounds), "--folder", folder)
    coordinator, sites = start("secagg_round.py", "coordinator", *common), None
    try:
        answer(coordinator)
        sites = start("secagg_round.py", "sites", *common)
        found = answer(coordinator)
        sites.terminate()
    finally:
        end(sites, coordinator)
    return found


def _seconds(run: Callable[[], Any]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Secure aggregation, beside Flower's SecAgg+.")
    parser.add_argument("--quick", action="store_true", help="about a minute; rough figures")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parts = {
        "masks": measure_masks,
        "attempts": measure_attempts,
        "sampler": measure_sampler,
        "memory": measure_memory,
        "round": measure_round,
    }
    parser.add_argument("--only", choices=parts, help="one part")
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    gc.freeze()  # what is imported by now is nobody's work: a pass over it takes 100 ms
    report = Report()
    for name, measure in parts.items():
        if options.only in (None, name):
            measure(report, quick=options.quick)
    report.print(("cloister", "cryptography", "flwr", "numpy", "torch"), as_json=options.json)


if __name__ == "__main__":
    main()
