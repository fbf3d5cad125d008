# ruff: noqa: E402  (the allocator is set before anything heavy is imported)
"""How long an audit of the embedded example takes, test by test.

    python benchmarks/audit.py [--quick] [--json] [--run DIR]

Runs `cloister simulate` on the embedded example, unless a finished run of it is given, and then
each suite on a copy of it as `cloister audit run` does: opening the run, asking the sites, all
tests, report and signatures. `--quick` leaves out the suite `full`. It exits 0 whatever falls
short.
"""

import argparse
import contextlib
import io
import shutil
import sys
import tempfile
import time
from pathlib import Path

# This file's folder goes last: this file has the name of the package that it measures.
sys.path.append(sys.path.pop(0))

from core.allocator import keep_freed_memory

keep_freed_memory()

from parts.report import Report

from audit.subject import Subject
from audit.suite import SuiteOutcome, run_suite
from audit.verdicts import AuditTest, NotRun, Suite, TestResult
from cli import audit_run
from cli.main import main as cloister

TARGETS: dict[Suite, float] = {"conformance": 20.0, "quick": 180.0, "full": 900.0}


class Stopwatch:
    """Seconds of each test."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def begins(self, test: AuditTest, number: int, count: int) -> None:
        """Says what runs, for who waits."""
        print(f"{number}/{count} {test.card.id} {test.card.title}", file=sys.stderr)

    def ended(self, test: AuditTest, outcome: TestResult | NotRun, seconds: float) -> None:
        """Takes the time."""
        self.seconds[test.card.id] = seconds


def simulated(folder: Path) -> Path:
    """A finished run of the embedded example."""
    with contextlib.redirect_stdout(io.StringIO()):
        if cloister(["simulate", "--output", str(folder), "--json"], own_process=False) != 0:
            raise SystemExit("the run to audit did not end")
    return folder


def measure(run: Path, suite: Suite, folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds of a whole audit of a copy of the run, and of each of its tests."""
    copy = folder / suite
    shutil.copytree(run, copy)
    watch = Stopwatch()

    def timed(subject: Subject, chosen: Suite, **settings: object) -> SuiteOutcome:
        return run_suite(subject, chosen, listener=watch)

    audit_run.run_suite = timed  # type: ignore[assignment]
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        cloister(["audit", "run", str(copy), "--suite", suite, "--json"], own_process=False)
    return time.perf_counter() - started, watch.seconds


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="How long an audit takes.")
    parser.add_argument("--quick", action="store_true", help="without the suite full")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--run", type=Path, metavar="DIR", help="a finished run of the example")
    options = parser.parse_args()
    report = Report()
    suites: list[Suite] = ["conformance", "quick"] if options.quick else list(TARGETS)
    with tempfile.TemporaryDirectory() as name:
        run = options.run or simulated(Path(name) / "run")
        for suite in suites:
            whole, tests = measure(run, suite, Path(name))
            report.add(f"seconds/{suite}", [whole], "s", at_most=TARGETS[suite])
            for test, seconds in tests.items():
                report.add(f"seconds/{suite}/{test}", [seconds], "s")
    report.notes.append("one audit a suite; a suite's seconds include opening, report and signing")
    report.print(("cloister", "torch", "opacus", "scipy"), as_json=options.json)


if __name__ == "__main__":
    main()
