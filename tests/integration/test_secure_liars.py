"""One of five sites lies at some step of secure aggregation: it is named, the others' sum counts;
or, where nobody can tell who lied, the attempt ends by name and nothing is applied.
"""

from collections.abc import Iterable
from pathlib import Path

import pytest
from flwr.app import Message

from coordinator.grids.in_process import InProcessGrid
from core.aggregation_messages import MASKED, SHARES, SealedShare, SealedShares
from core.errors import QuorumError
from privacy.secure_aggregation.site import SiteAttempt
from tests.support import secure_federation
from tests.support.masked_inputs import check_transcript, keeping
from tests.support.releases import check_releases
from tests.support.secure_federation import FIVE, SecureFederation, document
from tests.support.secure_lies import AFTERWARDS, LIAR, NAMED, SPOILED, other_boxes, refuses

ONE_ROUND = ("federation.num_rounds=1",)


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the vectors lie that were masked."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    monkeypatch.setattr(SiteAttempt, "mask", keeping(SiteAttempt.mask, folder))
    return folder


@pytest.mark.parametrize("lie", NAMED)
def test_a_liar_is_named_and_the_others_sum_counts(tmp_path: Path, inputs: Path, lie: str) -> None:
    step, make, said = NAMED[lie]
    federation = SecureFederation(tmp_path / "f", ONE_ROUND)
    federation.put(LIAR, step, make(federation))
    _, record = federation.run()
    line = record.rounds[1]
    assert line["used"] == [site for site in FIVE if site != LIAR]
    (rejected,) = line["rejected"]
    assert (rejected["site"], rejected["code"]) == (LIAR, "invalid-reply")
    assert said in rejected["message"]
    check_transcript(inputs, line["transcript"])
    for site in FIVE:
        check_releases(federation.entries(site), site, [line["transcript"]])


@pytest.mark.parametrize("lie", AFTERWARDS)
def test_a_liar_whose_update_is_summed_is_named_in_the_log(
    tmp_path: Path, inputs: Path, lie: str, caplog: pytest.LogCaptureFixture
) -> None:
    step, make, said = AFTERWARDS[lie]
    federation = SecureFederation(tmp_path / "f", ONE_ROUND)
    federation.put(LIAR, step, make(federation))
    _, record = federation.run()
    line = record.rounds[1]
    assert line["used"] == list(FIVE)
    assert (line["rejected"], line["refusals"]) == ([], [])
    (warning,) = (r.getMessage() for r in caplog.records if "left a sum" in r.getMessage())
    assert warning.startswith(f"{LIAR} left a sum that holds its update")
    assert said in warning
    check_transcript(inputs, line["transcript"])


@pytest.mark.parametrize("lie", SPOILED)
def test_what_nobody_can_tell_ends_the_attempt_and_applies_nothing(
    tmp_path: Path, inputs: Path, lie: str
) -> None:
    step, make, said = SPOILED[lie]
    federation = SecureFederation(tmp_path / "f", ONE_ROUND)
    federation.put(LIAR, step, make(federation), times=1)
    _, record = federation.run()
    (short,) = (line for line in record.lines if line["kind"] == "short")
    assert short["usable"] == []
    codes = {bad["code"] for bad in short["rejected"]}
    assert codes == {"attempt-ended"}
    assert said in str(short["rejected"])
    # The next attempt is honest: it is of other updates, where the first ones had left.
    line = record.rounds[1]
    assert (line["attempts"], line["used"]) == (2, list(FIVE))
    check_transcript(inputs, line["transcript"])
    # The boxes that do not open are the liar's: it alone got so far as to spend its update.
    spent = {site: {1: 1 if step == SHARES and site != LIAR else 2} for site in FIVE}
    assert federation.debits() == spent


def test_one_who_always_spoils_stops_the_run_and_not_more(tmp_path: Path) -> None:
    step, make, _ = SPOILED["a garbage vector of its own"]
    federation = SecureFederation(tmp_path / "f", ONE_ROUND)
    federation.put(LIAR, step, make(federation))
    with pytest.raises(QuorumError, match="attempt-ended"):
        federation.run()
    assert [line["server_round"] for line in federation.record().rounds] == [0]


def test_a_box_that_does_not_open_costs_the_one_whom_it_is_for(
    tmp_path: Path, inputs: Path
) -> None:
    """The liar's update counts: whether dealer or receiver lied, the coordinator cannot see."""
    federation = SecureFederation(tmp_path / "f", ONE_ROUND)
    lie = document("shares", SealedShares, shares=other_boxes("ant"))
    federation.put(LIAR, SHARES, lie)
    _, record = federation.run()
    line = record.rounds[1]
    assert line["used"] == [site for site in FIVE if site != "ant"]
    (rejected,) = line["rejected"]
    assert (rejected["site"], rejected["code"]) == ("ant", "attempt-ended")
    assert "share-unopened" in rejected["message"]
    check_transcript(inputs, line["transcript"])


def test_nobody_is_taken_for_the_liar_who_speaks_in_its_name(tmp_path: Path, inputs: Path) -> None:
    """The first to answer deals well-formed shares as if it were the second, which comes after."""

    def as_bee(dealt: SealedShares) -> tuple[SealedShare, ...]:
        box = dealt.shares[0].box
        return tuple(SealedShare(peer=peer, box=box) for peer in FIVE if peer != "bee")

    federation = SecureFederation(tmp_path / "f", ONE_ROUND)
    federation.put("ant", SHARES, document("shares", SealedShares, site="bee", shares=as_bee))
    _, record = federation.run()
    line = record.rounds[1]
    assert line["used"] == [site for site in FIVE if site != "ant"]
    assert [(bad["site"], bad["code"]) for bad in line["rejected"]] == [("ant", "invalid-reply")]
    check_transcript(inputs, line["transcript"])


@pytest.mark.parametrize("step", [SHARES, MASKED])
def test_a_refusal_in_the_middle_is_one(tmp_path: Path, inputs: Path, step: str) -> None:
    federation = SecureFederation(tmp_path / "f", ONE_ROUND)
    federation.put(LIAR, step, refuses("policy-refused")(federation))
    _, record = federation.run()
    line = record.rounds[1]
    assert line["used"] == [site for site in FIVE if site != LIAR]
    assert [(no["site"], no["code"]) for no in line["refusals"]] == [(LIAR, "policy-refused")]
    assert line["rejected"] == []
    check_transcript(inputs, line["transcript"])


class Repeating(InProcessGrid):
    """Gives every reply twice, and one that nobody was asked for."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        for reply in super().send_and_receive(messages, timeout=timeout):
            yield reply
            yield reply
            reply.metadata._src_node_id = 99  # type: ignore[attr-defined]
            yield reply


def test_a_reply_too_many_changes_nothing(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secure_federation, "InProcessGrid", Repeating)
    federation = SecureFederation(tmp_path / "f", ONE_ROUND)
    _, record = federation.run()
    line = record.rounds[1]
    assert (line["used"], line["rejected"], line["refusals"]) == (list(FIVE), [], [])
    check_transcript(inputs, line["transcript"])
    assert federation.debits() == {site: {1: 1} for site in FIVE}
