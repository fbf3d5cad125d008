"""The progress bar of a run; silent where stderr is no terminal."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from core.run_record import RoundResult


class ProgressBar:
    """Rounds, loss and the largest epsilon of a site; listens to the round loop."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("[bold]round"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("rounds", total=None, state="starting")
        self.final_arrays: Mapping[str, npt.NDArray[Any]] = {}
        self.summary: Mapping[str, Any] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def run_started(self, server_round: int, num_rounds: int) -> None:
        """Sets the scale."""
        self._bar.update(self._task, total=num_rounds, completed=server_round)

    def attempt_started(self, server_round: int, attempt: int, sites: Sequence[str]) -> None:
        """Says who is asked."""
        again = f", attempt {attempt}" if attempt > 1 else ""
        self._bar.update(self._task, state=f"asking {len(sites)} sites{again}")

    def round_finished(self, result: RoundResult) -> None:
        """Moves on, with the newest figures."""
        self._bar.update(self._task, completed=result.server_round, state=_figures(result))

    def run_finished(
        self, summary: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> None:
        """Keeps the result for what comes after the run."""
        self.summary, self.final_arrays = summary, arrays


def _figures(result: RoundResult) -> str:
    parts = []
    metrics = result.metrics or {}
    for name in ("loss", "accuracy"):
        value = metrics.get(name)
        if isinstance(value, float):
            parts.append(f"{name} {value:.3f}")
    spent = [s.epsilon for s in result.spent.values() if s.epsilon is not None]
    if spent:
        parts.append(f"epsilon <= {max(spent):.2f}")
    return "  ".join(parts)
