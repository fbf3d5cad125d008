# ruff: noqa: E402  (the allocator is set before anything heavy is imported)
"""Noise on a grid: the integer sampler, the noising of sums, and what they are measured against.

    python benchmarks/noise.py [--quick] [--json]

Each round runs every side once, on one thread: the integer sampler at a deviation of 2**23, the
noising of fp32 sums of 27M values in place (rounding and checks included), Box-Muller in double
precision from the same AES-256-CTR (what Cloister did before; open to floating-point attacks), and
torch's own generator (whose seed has 32 bits: not secure). It exits 0 whatever falls short.
"""

import argparse
import time
from collections.abc import Callable
from fractions import Fraction

from core.allocator import keep_freed_memory

keep_freed_memory()

import numpy as np
import torch
from parts.report import Report

from privacy.discrete_gaussian import DiscreteGaussian
from privacy.discrete_gaussian_grid import GridNoise
from privacy.random_source import RandomSource, RandomStream

DEVIATION = 2**23
PARAMETERS = 27_000_000  # d = 512, 6 layers
PAIRS = 1 << 15


def box_muller(stream: RandomStream, count: int) -> torch.Tensor:
    """Single precision, from 53-bit uniforms."""
    noise = np.empty(count, dtype=np.float32)
    for start in range(0, count, 2 * PAIRS):
        uniform = (stream.words(2 * PAIRS) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log(1.0 - uniform[:PAIRS]))
        angle = uniform[PAIRS:] * (2.0 * np.pi)
        both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        noise[start : start + 2 * PAIRS] = both[: count - start]
    return torch.from_numpy(noise)


def sides(count: int) -> dict[str, Callable[[], torch.Tensor]]:
    """What is timed, by name; each gives ``count`` values of deviation 1."""
    stream = RandomSource.fresh().stream("noise")
    sampler = DiscreteGaussian(Fraction(DEVIATION) ** 2)
    grid = GridNoise(noise_multiplier=1.0, sensitivity=1.0, dimension=count)
    sums, normal = torch.zeros(count), torch.empty(count)

    def noised() -> torch.Tensor:
        grid.add_([sums.zero_()], stream)
        return sums

    return {
        "sampler": lambda: sampler.sample(stream, count),
        "grid_noise": noised,
        "box_muller": lambda: box_muller(stream, count),
        "torch_randn": normal.normal_,
    }


def check(name: str, values: torch.Tensor) -> None:
    """No time is reported of noise that has another deviation."""
    deviation = float(values.double().std()) / (DEVIATION if name == "sampler" else 1)
    if not abs(deviation - 1) < 0.005:
        raise SystemExit(f"{name}: expected noise of deviation 1, got {deviation}: not measured")


def measure(report: Report, *, quick: bool) -> None:
    """All sides in turns."""
    count, rounds = (3_000_000, 3) if quick else (PARAMETERS, 7)
    cores = torch.get_num_threads()
    timed = sides(count)
    millions: dict[str, list[float]] = {name: [] for name in [*timed, "grid_noise_all_cores"]}

    def run(name: str, threads: int) -> None:
        torch.set_num_threads(threads)
        side = "grid_noise" if name == "grid_noise_all_cores" else name
        start = time.perf_counter()
        timed[side]()
        millions[name].append(count / (time.perf_counter() - start) / 1e6)

    for name, side in timed.items():
        check(name, side())
    for _ in range(rounds):
        for name in timed:
            run(name, 1)
        run("grid_noise_all_cores", cores)
    for name, values in millions.items():
        goal = 135.0 if name in ("sampler", "grid_noise") else None
        report.add(f"{name}_millions_per_s", values, "1e6/s", at_least=goal)
    for rival in ("box_muller", "torch_randn"):
        pairs = zip(millions["grid_noise"], millions[rival], strict=True)
        report.add(f"ratio_to_{rival}", [ours / other for ours, other in pairs], "x")
    seconds = [PARAMETERS / 1e6 / value for value in millions["grid_noise_all_cores"]]
    report.add("seconds/27M", seconds, "s", at_most=0.09)
    report.notes.append(f"{rounds} rounds of {count} values; all cores: {cores} threads")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Noise on a grid, beside other generators.")
    parser.add_argument("--quick", action="store_true", help="seconds; rough figures")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    report = Report()
    measure(report, quick=options.quick)
    report.print(("cloister", "cryptography", "numpy", "torch"), as_json=options.json)


if __name__ == "__main__":
    main()
