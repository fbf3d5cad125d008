import json
from pathlib import Path

import pytest

from coordinator.run_directory import RunDirectory, versions
from coordinator.summary import is_private, summarise
from core.config import FederationConfig
from core.errors import RunError
from core.messages import DpSgdTerms, SpentBudget
from core.run_record import RejectedReply, RoundResult, SiteRefusal, read_record
from tests.support.sites import config_of

CONFIG = config_of({"north": 100, "south": 300})
DIGEST = "d" * 64


def _open(folder: Path, config: FederationConfig = CONFIG, digest: str = DIGEST):  # type: ignore[no-untyped-def]
    return RunDirectory.open(folder, config, task_digest=digest)


def _result(server_round: int, *, private: bool = True) -> RoundResult:
    return RoundResult(
        server_round=server_round,
        attempts=1,
        used=["north"],
        spent={"north": SpentBudget(epsilon=0.5, delta=1e-5, private=private)},
        refusals=[SiteRefusal("south", "policy-refused", "no", "ask")],
        rejected=[RejectedReply("west", "no-reply", "late")],
        weights_digest="a" * 64,
        seconds=1.25,
        metrics={"loss": float("inf"), "confusion": [[1, 2], [3, 4]], "accuracy": 0.5},
    )


def _append(run: RunDirectory, result: RoundResult) -> None:
    line = result.line()
    run.append(line.pop("kind"), **line)


def test_a_new_run_has_a_header_and_a_random_id(tmp_path: Path) -> None:
    with _open(tmp_path / "one") as run:
        one = run.run_id
    with _open(tmp_path / "two") as run:
        assert run.run_id != one
    header = json.loads((tmp_path / "one" / "run.json").read_text())
    assert len(header["run_id"]) == 16
    assert header["task_digest"] == DIGEST
    assert header["config"]["federation"]["name"] == "trial"
    assert header["versions"] == versions()


def test_lines_are_read_back_and_a_run_keeps_its_id(tmp_path: Path) -> None:
    with _open(tmp_path) as run:
        _append(run, _result(1))
        run_id = run.run_id
    with _open(tmp_path) as run:
        assert run.run_id == run_id
        assert run.record == read_record(tmp_path)
        (line,) = run.record.rounds
    assert line["metrics"] == {"loss": None, "confusion": [[1, 2], [3, 4]], "accuracy": 0.5}
    assert RoundResult.from_line(line).line() == line


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_does_not_count_and_is_cut_off(tmp_path: Path, cut: int) -> None:
    with _open(tmp_path) as run:
        _append(run, _result(1))
    path = tmp_path / "record.jsonl"
    # A line that was never whole is not signed either.
    path.write_bytes(path.read_bytes() + path.read_bytes()[:-cut])

    assert [line["server_round"] for line in read_record(tmp_path).rounds] == [1]
    with _open(tmp_path) as run:
        _append(run, _result(2))
    assert [line["server_round"] for line in read_record(tmp_path).rounds] == [1, 2]
    assert len(path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize("damage", [b"not JSON\n", b"[]\n", b'{"other":1}\n', b'{"kind":1}\n'])
def test_a_line_damaged_elsewhere_is_named(tmp_path: Path, damage: bytes) -> None:
    with _open(tmp_path) as run:
        _append(run, _result(1))
    path = tmp_path / "record.jsonl"
    path.write_bytes(path.read_bytes() + damage + path.read_bytes())

    with pytest.raises(RunError, match=r"expected a record's line at .*record\.jsonl:2"):
        read_record(tmp_path)


def test_resuming_takes_back_the_rounds_after_it(tmp_path: Path) -> None:
    with _open(tmp_path) as run:
        for server_round in (0, 1, 2):
            _append(run, _result(server_round))
        run.append("attempt", server_round=3, attempt=1, sites=["north"])
        run.append("attempt", server_round=3, attempt=2, sites=["north"])
        run.append("resumed", server_round=1, versions={})

    record = read_record(tmp_path)
    assert [line["server_round"] for line in record.rounds] == [0, 1]
    assert (record.attempts(3), record.attempts(2)) == (2, 0)


def test_another_configuration_or_task_is_refused(tmp_path: Path) -> None:
    with _open(tmp_path):
        pass
    other = config_of({"north": 100}, num_rounds=9)
    for config, digest, name in (
        (other, DIGEST, "config_digest"),
        (CONFIG, "e" * 64, "task_digest"),
    ):
        with (
            pytest.raises(RunError, match=f"expected a run with {name}") as caught,
            _open(tmp_path, config, digest),
        ):
            pass
        assert caught.value.hint == "another configuration began here: choose another --output"


def test_another_run_id_is_refused(tmp_path: Path) -> None:
    with _open(tmp_path):
        pass
    with (
        pytest.raises(RunError, match="expected a run with run_id 0000000000000000"),
        RunDirectory.open(tmp_path, CONFIG, task_digest=DIGEST, run_id="0" * 16),
    ):
        pass


@pytest.mark.parametrize("name", ["terms.json", "record.jsonl", "summary.json", "checkpoints"])
def test_a_directory_that_is_not_ours_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")

    with pytest.raises(RunError, match=f"expected run.json beside {name}"), _open(tmp_path):
        pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON in"),
        ("[]", "expected the header of a run in"),
        ('{"run_id": "1"}', "expected the header of a run in"),
        (
            '{"schema_version": 2, "run_id": "", "config": {}, "config_digest": "", '
            '"task_digest": "", "audit_commitment": "", "versions": {}}',
            "expected schema version 1",
        ),
    ],
)
def test_a_header_that_is_not_ours_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.json").write_text(text)

    with pytest.raises(RunError, match=message), _open(tmp_path):
        pass
    with pytest.raises(RunError, match=message):
        read_record(tmp_path)


def test_no_run_and_no_record_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected a run at"):
        read_record(tmp_path)
    with _open(tmp_path):
        pass
    with pytest.raises(RunError, match="expected a record at"):
        read_record(tmp_path)


def test_two_processes_do_not_write_to_one_directory(tmp_path: Path) -> None:
    with (
        _open(tmp_path),
        pytest.raises(RunError, match="another process writes to"),
        _open(tmp_path),
    ):
        pass
    with _open(tmp_path):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(RunError, match="cannot write the run directory"), _open(tmp_path / "file"):
        pass
    with _open(tmp_path / "run") as run:
        (tmp_path / "run" / "record.jsonl").mkdir()
        (tmp_path / "run" / "summary.json").mkdir()
        with pytest.raises(RunError, match="cannot append to"):
            run.append("stopped")
        with pytest.raises(RunError, match="cannot write"):
            run.write_summary({})


def test_privacy_constants_are_computed_once(tmp_path: Path) -> None:
    terms = DpSgdTerms(noise_multiplier=1.1, sample_rate=0.1, max_batch_size=20, max_examples=125)
    constants = {"north": terms, "south": None}
    with _open(tmp_path) as run:
        assert run.terms(lambda: constants) == constants
    with _open(tmp_path) as run:
        assert run.terms(lambda: pytest.fail("computed again")) == constants


@pytest.mark.parametrize("text", ["{", "[]", '{"north": {"noise_multiplier": -1}}', '{"north": 3}'])
def test_damaged_privacy_constants_are_refused(tmp_path: Path, text: str) -> None:
    with _open(tmp_path) as run:
        (tmp_path / "terms.json").write_text(text)
        with pytest.raises(RunError, match="expected the privacy constants in"):
            run.terms(dict)


def test_the_summary_is_drawn_from_the_record(tmp_path: Path) -> None:
    with _open(tmp_path) as run:
        for server_round in (0, 1):
            _append(run, _result(server_round))
        summary = summarise(run.record, stopped="no quorum")

    assert summary["status"] == "stopped"
    assert summary["reason"] == "no quorum"
    assert summary["sites"]["north"] == {
        "num_examples": 100,
        "rounds": 2,
        "epsilon": 0.5,
        "delta": 1e-5,
        "private": True,
        "refusals": 0,
        "rejected": 0,
    }
    assert summary["sites"]["south"]["refusals"] == 2
    assert summary["sites"]["south"]["private"] is None


def test_one_ledger_without_a_guarantee_makes_the_run_not_private(tmp_path: Path) -> None:
    with _open(tmp_path) as run:
        _append(run, _result(1))
        assert is_private(run.record)
        _append(run, _result(2, private=False))
        assert not is_private(run.record)


def test_mode_none_is_never_private(tmp_path: Path) -> None:
    config = config_of({"north": 100}, privacy={"mode": "none"})
    with _open(tmp_path, config) as run:
        assert not is_private(run.record)
