"""What `cloister client ledger` says of each mechanism."""

from argparse import Namespace
from pathlib import Path

import pytest

from cli.ledger import run_ledger
from privacy.events import DistributedDpSgdEvent, DpSgdEvent, Event, NonPrivateEvent
from privacy.ledger import Ledger

OWN = DpSgdEvent(1.25, 0.01, 200, 10_000, 31, 1.0)
SHARED = DistributedDpSgdEvent(1.25, 0.01, 200, 10_000, 1.0, 2, 1e-25)


def printed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, event: Event
) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    path = folder / "ledger.sqlite"
    with Ledger.open(path, site="north") as ledger:
        sequence = ledger.reserve(
            event,
            run_id="0" * 16,
            server_round=1,
            attempt=1,
            task_digest="1" * 64,
            max_epsilon=8.0 if event.private else 1e9,
            delta=1e-5,
        )
        ledger.settle(sequence, event.steps or 0)
    options = Namespace(config=None, ledger=path, site="north", delta=1e-5, json=False)
    assert run_ledger(options) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (OWN, "dp-sgd: noise 1.25, rate 0.01, 31 steps"),
        (SHARED, "distributed-dp-sgd: noise 1.25, rate 0.01, 1 step, bears 2 colluding"),
    ],
)
def test_a_private_mechanism_is_told_with_its_constants(
    event: Event,
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = printed(tmp_path, capsys, monkeypatch, event)
    assert line in text
    assert f"{event.steps} steps ran of entry 2" in text
    assert "at delta 1e-05, over the site's whole life, add or remove one" in text


def test_predictable_noise_of_several_sites_is_told_as_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = printed(tmp_path, capsys, monkeypatch, NonPrivateEvent("test-noise", SHARED))
    assert "non-private" in text
    assert "NOT PRIVATE" in text
