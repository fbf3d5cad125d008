"""What `status` prints: what sites said is text, and nothing but text."""

import pytest

from cli.coordinator_runs import _print_tables
from core.wire.documents import RunStatus, StatusReport


@pytest.mark.parametrize("said", ["[/bold] no", "[bold green]finished[/]", "[link=http://x]here"])
def test_brackets_in_a_site_s_refusal_are_no_markup(
    said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = RunStatus(
        run_id="0" * 16,
        name="clinic",
        state="stopped",
        server_round=1,
        num_rounds=2,
        reason=f"stopped {said}",
        refusals=(f"north: round-failed: {said}",),
    )
    _print_tables(StatusReport(federation="clinic", version="0", roster_epoch=1, runs=(run,)))
    printed = capsys.readouterr().out
    assert f"stopped {said}" in printed
    assert f"north: round-failed: {said}" in printed
