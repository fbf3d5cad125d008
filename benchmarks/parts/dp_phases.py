"""Where the time of a step goes: its phases, without privacy and by one backward pass, in turns.

Prints one JSON object, seconds by phase for each step. The steps are those of ``dp_step.py``;
their functions are replaced by ones that look at the clock.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from dp_step import CASES, PLAIN, Case, stepper_of, whole_step

from privacy.one_backward import clipping

PRIVATE = "one_backward"
# Methods of the private optimizer, in the order in which a step calls them.
PRIVATE_PHASES = {"accumulate": "weighted_sums", "add_noise": "noise", "scale_grad": "scale"}


class Clock:
    """Seconds by phase of one step; a phase within another is counted once."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = 0.0

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose time goes to ``phase``."""

        def run(*arguments: Any, **options: Any) -> Any:
            before, self._inner = self._inner, 0.0
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                took = time.perf_counter() - start
                self.seconds[phase] += took - self._inner
                self._inner = before + took

        return run

    def take(self) -> dict[str, float]:
        """The phases since the last call."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken


def watch(stepper: Any, clock: Clock) -> None:
    """Replaces what a step of this stepper calls."""
    stepper._loss = clock.timed("forward", stepper._loss)
    update = getattr(stepper, "_optimizer", None)
    if update is None:
        private = stepper.optimizer
        for method, phase in PRIVATE_PHASES.items():
            setattr(private, method, clock.timed(phase, getattr(private, method)))
        update = private.original_optimizer
    update.step = clock.timed("update", update.step)


def measure(case: Case, pairs: int) -> dict[str, list[dict[str, float]]]:
    """Phases of ``pairs`` steps of both kinds; ``rest`` is all that has no name."""
    clock = Clock()
    torch.Tensor.backward = clock.timed("backward", torch.Tensor.backward)  # type: ignore[method-assign]
    for term in (clipping._MatrixTerm, clipping._DenseTerm):
        term.squared_norms = clock.timed("norms", term.squared_norms)  # type: ignore[method-assign]
    steps = {}
    for name in (PLAIN, PRIVATE):
        stepper = stepper_of(name, case)
        watch(stepper, clock)
        steps[name] = clock.timed("rest", whole_step(stepper, case))
        steps[name]()  # buffers, the optimizer's state
    found: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    clock.take()
    for _ in range(pairs):
        for name, step in steps.items():
            step()
            found[name].append(clock.take())
    return found


def main() -> None:
    """Prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    print(json.dumps(measure(CASES[options.case], options.pairs)))


if __name__ == "__main__":
    main()
