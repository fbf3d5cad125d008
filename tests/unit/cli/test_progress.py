"""The progress bar: rounds, figures and epsilon on a terminal, silence elsewhere."""

import io

import pytest
from rich.console import Console

import cli.progress
from cli.progress import ProgressBar
from core.messages import SpentBudget
from core.run_record import RoundResult

RESULT = RoundResult(
    server_round=2,
    attempts=1,
    used=("north",),
    spent={
        "north": SpentBudget(epsilon=3.25, delta=1e-5, private=True),
        "south": SpentBudget(epsilon=1.0, delta=1e-5, private=True),
    },
    refusals=(),
    rejected=(),
    weights_digest="0" * 64,
    seconds=1.0,
    metrics={"loss": 0.5, "accuracy": 0.75},
)


def draw(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    shown = io.StringIO()

    def console(**_: object) -> Console:
        return Console(file=shown, force_terminal=terminal, width=120)

    monkeypatch.setattr(cli.progress, "Console", console)
    with ProgressBar() as progress:
        progress.run_started(0, 4)
        progress.attempt_started(2, 3, ["north", "south"])
        progress.round_finished(RESULT)
    return shown.getvalue()


def test_a_terminal_sees_rounds_loss_and_the_largest_epsilon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = draw(monkeypatch, terminal=True)
    assert "2/4" in shown
    assert "loss 0.500  accuracy 0.750  epsilon <= 3.25" in shown


def test_anything_else_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert draw(monkeypatch, terminal=False) == ""


def test_the_result_is_kept() -> None:
    progress = ProgressBar()
    progress.run_finished({"status": "completed"}, {})
    assert progress.summary == {"status": "completed"}
