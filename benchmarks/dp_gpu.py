"""Steps of DP-SGD on one GPU against steps without privacy: tokens a second and memory.

    python benchmarks/dp_gpu.py [--quick] [--json] [--only MODEL ...] [--modes MODE ...]
                                [--device cpu] [--seconds N]

GPT-style models of 27, 124 and 350 million weights in bf16 autocast, AdamW, four micro-batches a
step, noise at every step. One process a model; within it the sides follow one another, and the
plain one is measured again at the end. A ratio is to the faster of the plain sides, eager and
compiled, so compiled private code is not compared with eager plain code. No time is reported for a
mode before its clipped sums were found equal: to fp64's on a small model, to autograd's at full
size. What a mode refuses, has no memory for, or does not reach in time is left out by name.
``--device cpu`` is for trying the program: a tiny model, and figures that mean nothing. It exits 0
whatever falls short.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from parts.report import Report

PART = Path(__file__).parent / "parts/dp_gpu.py"
MODELS = ("27m", "124m", "350m")
MODES = ("one_backward_compiled", "one_backward", "hooks", "ghost")
QUICK_MODELS = ("27m",)
QUICK_MODES = ("one_backward_compiled", "one_backward")
PLAIN, PLAIN_COMPILED = "non_private", "non_private_compiled"
TARGET = 0.9
SECONDS = 450.0  # of all models together


def names_of(mode: str, model: str) -> tuple[str, str, str]:
    """The figures of a mode."""
    return (
        f"throughput_ratio/{mode}/{model}",
        f"tokens_per_second/{mode}/{model}",
        f"memory_ratio/{mode}/{model}",
    )


def measure(
    report: Report, model: str, modes: tuple[str, ...], device: str, *, steps: int, seconds: float
) -> None:
    """The figures of one model."""
    answers, reason = _call(model, modes, device, steps, seconds)
    plain: dict[str, list[dict[str, Any]]] = {PLAIN: [], PLAIN_COMPILED: []}
    found: dict[str, dict[str, Any]] = {}
    for answer in answers:
        if answer["side"] in plain:
            plain[answer["side"]].append(answer)
        else:
            found[answer["side"]] = answer
    measured = [one for side in plain.values() for one in side if "rates" in one]
    _add_plain(report, model, plain, reason)
    for mode in modes:
        answer = found.get(mode, {"refused": reason})
        if "refused" in answer or not measured:
            why = answer.get("refused", "no plain side to compare with")
            report.leave_out(names_of(mode, model), why)
        else:
            _add_mode(report, model, mode, answer, measured)


def _add_plain(
    report: Report, model: str, plain: dict[str, list[dict[str, Any]]], reason: str
) -> None:
    for side, answers in plain.items():
        rates = [answer["rates"] for answer in answers if "rates" in answer]
        name = f"tokens_per_second/{side}/{model}"
        if not rates:
            report.leave_out([name], answers[0]["refused"] if answers else reason)
            continue
        report.add(name, rates[0], "1/s")
        for again in rates[1:]:
            ratios = [rate / median(rates[0]) for rate in again]
            report.add(f"throughput_ratio/{side}/{model}", ratios, "x")
        memory = [answer["mebibytes"] for answer in answers if "mebibytes" in answer]
        if memory:
            report.add(f"mebibytes/{side}/{model}", memory[:1], "MiB")


def _add_mode(
    report: Report,
    model: str,
    mode: str,
    answer: dict[str, Any],
    measured: list[dict[str, Any]],
) -> None:
    ratio, rate, memory = names_of(mode, model)
    best = max(median(one["rates"]) for one in measured)
    target = TARGET if mode == "one_backward_compiled" else None
    report.add(ratio, [one / best for one in answer["rates"]], "x", at_least=target)
    report.add(rate, answer["rates"], "1/s")
    if "mebibytes" in answer:
        least = min(one["mebibytes"] for one in measured)
        report.add(memory, [answer["mebibytes"] / least], "x")
    else:
        report.leave_out([memory], "peaks are those of a GPU's allocator")
    gaps, before = answer["gaps"], answer["seconds_before"]
    report.notes.append(
        f"{model}, {mode}: clipped sum off fp64's over a small model by {gaps['small']:.1e}, off "
        f"autograd's at full size by {gaps['full']:.1e}; {before:.0f} s before the first timed step"
    )


def _call(
    model: str, modes: tuple[str, ...], device: str, steps: int, seconds: float
) -> tuple[list[dict[str, Any]], str]:
    """What the part printed until its end or ours, and why there is not more."""
    command = [sys.executable, str(PART), model, *modes]
    command += ["--device", device, "--steps", str(steps)]
    if seconds <= 0:
        return [], "no time was left"
    reason = "it was not measured"
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
        printed = done.stdout
        if done.returncode:
            reason = f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        printed = output.decode() if isinstance(output, bytes) else output
        reason = "no time was left"
    lines = [line for line in printed.splitlines() if line.startswith("{") and line.endswith("}")]
    return [json.loads(line) for line in lines], reason


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Steps of DP-SGD on a GPU against plain ones.")
    parser.add_argument("--quick", action="store_true", help="the smallest model, our modes")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--only", nargs="+", choices=MODELS, help="these models")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="these modes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all of it")
    options = parser.parse_args()
    models = tuple(options.only or (QUICK_MODELS if options.quick else MODELS))
    modes = tuple(options.modes or (QUICK_MODES if options.quick else MODES))
    report = Report()
    end = time.monotonic() + options.seconds
    if options.device == "cpu":
        models = ("tiny",)
        report.notes.append("on the CPU: the program was tried, and nothing measured")
    elif not torch.cuda.is_available():
        names = [name for model in models for mode in modes for name in names_of(mode, model)]
        report.leave_out(names, "no CUDA device; --device cpu tries the program")
        models = ()
    else:
        report.notes.append(f"GPU: {torch.cuda.get_device_name()}")
    for model in models:
        left = end - time.monotonic()
        steps = 1 if options.device == "cpu" else 3 if options.quick else 5
        measure(report, model, modes, options.device, steps=steps, seconds=left)
    report.print(("cloister", "numpy", "opacus", "torch", "triton"), as_json=options.json)


if __name__ == "__main__":
    main()
