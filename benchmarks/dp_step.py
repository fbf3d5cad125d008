"""A step of DP-SGD against the same step without privacy: time and memory, in every mode.

    python benchmarks/dp_step.py [--quick] [--json] [--only CASE ...] [--modes MODE ...]
    python benchmarks/dp_step.py --profile [--only CASE ...]    where the time of a step goes

GPT-style models of 6 layers (vocabulary 8192, AdamW, noise at every step, 27 million weights at
d512). Private and plain steps are taken in turns in one process, on the allocator setting of
``core.allocator`` for both; memory is the peak above the imports, in fresh processes. No time is
reported for a mode before its clipped sum was found equal to autograd's. What a mode refuses is
left out by name. It exits 0 whatever falls short.

fastDP is not installed; its paper (Bu et al. 2022, "Differentially Private Optimization on Large
Model at Small Cost") gives 1.03 times the arithmetic and .83 times the speed of a plain step.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from parts.report import Report

PART = Path(__file__).parent / "parts/dp_step.py"
PHASES = Path(__file__).parent / "parts/dp_phases.py"
CASES = (
    "d512", "d512_micro8", "d256", "d256_B32", "d256_T512", "d256_tied", "d256_lora8", "d256_bf16",
)  # fmt: skip
MODES = ("one_backward", "hooks", "ghost", "functorch", "ew")
QUICK_CASES = ("d256",)
QUICK_MODES = ("one_backward", "hooks")
TIME_TARGETS = {
    "d512": 1.10,
    "d512_micro8": 1.06,
    "d256": 1.14,
    "d256_T512": 1.08,
    "d256_lora8": 0.98,
    "d256_bf16": 1.30,
}
MEMORY_TARGETS = {"d512": 1.07}
PLAIN = "non_private"
# What `core.allocator` sets, for both sides.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def measure(report: Report, case: str, modes: tuple[str, ...], *, quick: bool) -> None:
    """The figures of one case."""
    pairs = 3 if quick else (5 if case == "d512_micro8" else 11)
    processes = 1 if quick else 3
    control = _call("time", PLAIN, case, pairs)
    report.add(f"time_ratio/{PLAIN}/{case}", control["ratios"], "x")
    report.add(f"seconds/{PLAIN}/{case}", control["plain_seconds"], "s")
    plain = [_call("memory", PLAIN, case)["mebibytes"] for _ in range(processes)]
    report.add(f"mebibytes/{PLAIN}/{case}", plain, "MiB")
    for mode in modes:
        names = (f"time_ratio/{mode}/{case}", f"memory_ratio/{mode}/{case}")
        timed = _call("time", mode, case, pairs)
        if "refused" in timed:
            report.leave_out(names, timed["refused"])
            continue
        ours = mode == "one_backward"
        report.add(names[0], timed["ratios"], "x", at_most=TIME_TARGETS.get(case) if ours else None)
        private = [_call("memory", mode, case)["mebibytes"] for _ in range(processes)]
        ratios = [a / b for a, b in zip(private, plain, strict=True)]
        report.add(names[1], ratios, "x", at_most=MEMORY_TARGETS.get(case) if ours else None)
        report.notes.append(f"{case}, {mode}: clipped sum off by {timed['gap']:.1e} of the clip")


def profile(report: Report, case: str, *, quick: bool) -> None:
    """Milliseconds by phase, plain beside one backward pass, in turns in one process."""
    steps = _print_of(PHASES, case, "--pairs", str(3 if quick else 11))
    whole = {kind: [sum(step.values()) for step in taken] for kind, taken in steps.items()}
    ratios = [b / a for a, b in zip(whole[PLAIN], whole["one_backward"], strict=True)]
    report.add(f"time_ratio/one_backward/{case}", ratios, "x")
    for kind, taken in steps.items():
        for phase in taken[0]:
            report.add(f"{phase}/{kind}/{case}", [1e3 * step[phase] for step in taken], "ms")


def _call(what: str, mode: str, case: str, pairs: int = 0) -> dict[str, Any]:
    return _print_of(PART, what, mode, case, "--pairs", str(pairs))


def _print_of(part: Path, *arguments: str) -> dict[str, Any]:
    """What a part prints, in a fresh process."""
    command = [sys.executable, str(part), *arguments]
    environment = os.environ | ALLOCATOR
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="A step of DP-SGD against a plain one.")
    parser.add_argument(
        "--quick", action="store_true", help="a minute or two; one case, rough figures"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--only", nargs="+", choices=CASES, help="these cases")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="these modes")
    parser.add_argument("--profile", action="store_true", help="phases in place of ratios")
    options = parser.parse_args()
    cases = tuple(options.only or (QUICK_CASES if options.quick else CASES))
    modes = tuple(options.modes or (QUICK_MODES if options.quick else MODES))
    report = Report()
    if options.profile:
        cases, modes = tuple(options.only or ("d512",)), ("one_backward",)
    for case in cases:
        if options.profile:
            profile(report, case, quick=options.quick)
        else:
            measure(report, case, modes, quick=options.quick)
    report.notes.append(f"cases: {' '.join(cases)}; modes: {' '.join(modes)}")
    report.print(("cloister", "numpy", "opacus", "torch"), as_json=options.json)


if __name__ == "__main__":
    main()
