"""The progress bar of an audit, a line a test; silent where stderr is no terminal."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from audit.verdicts import AuditTest, NotRun, TestResult


class AuditProgress:
    """Listens to a suite."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("[bold]test"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("tests", total=None, state="opening the run")

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

    def begins(self, test: AuditTest, number: int, count: int) -> None:
        """Says which test it is."""
        card = test.card
        state = f"{card.id} {card.title}, about {card.cost_seconds:.0f} s"
        self._bar.update(self._task, total=count, completed=number - 1, state=state)

    def ended(self, test: AuditTest, outcome: TestResult | NotRun, seconds: float) -> None:
        """Leaves a line of what it found."""
        verdict = "not run" if isinstance(outcome, NotRun) else str(outcome.verdict)
        self._bar.advance(self._task)
        if self._bar.disable:
            return
        self._bar.print(f"{test.card.id:4} {verdict:12} {test.card.title} ({seconds:.1f} s)")
