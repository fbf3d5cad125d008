"""X3: real records that a model writes out: planted in an overfit model, and absent elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from audit.extraction.emission import _greedy
from audit.extraction.members import (
    FEWEST,
    Continued,
    MemberExtraction,
    continuations,
    extraction_result,
)
from audit.training import train_model
from audit.verdicts import Budget, NotRun, TestResult, Verdict
from core.data.held_out import Split
from core.data.records import Record
from core.errors import AuditError
from tests.support.audited import simulated_subject
from tests.support.federation import FEDERATION
from tests.support.language_subject import language_subject

PLAIN = FEDERATION.replace("noise_multiplier = 1.0", 'mode = "none"').replace(
    "[simulation]", "[simulation]\nallow_non_private = true"
)
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz "))


def texts(rng, count):
    return [Record("".join(rng.choice(LETTERS, 22))) for _ in range(count)]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A language model's federation, of which one site's records nobody can guess."""
    run = simulated_subject(tmp_path_factory.mktemp("run"), federation=PLAIN)
    train = replace(
        run.config.train,
        steps_per_round=150,
        global_batch_size=14,
        micro_batch_size=14,
        learning_rate=1e-2,
        warmup_steps=0,
    )
    found = language_subject(run, train=train, n_embd=64, n_head=4, max_seq_len=32)
    rng = np.random.default_rng(0)
    split = Split(texts(rng, 14), texts(rng, 14))
    north = replace(found.sites["north"], split=split)
    return replace(found, sites={"north": north})


@pytest.fixture(scope="module")
def overfit(subject):
    model = train_model(subject, subject.sites["north"].members, name="overfit", rounds=1)
    return replace(subject, model=replace(subject.model, model=model))


def values(result):
    return {measure.name: measure.value for measure in result.measures}


def test_an_overfit_model_writes_out_its_records_and_no_others(overfit):
    result = MemberExtraction().run(overfit, Budget(600))
    assert isinstance(result, TestResult)
    assert result.verdict is Verdict.FAIL
    assert values(result)["members-extracted"] >= 0.5
    assert values(result)["held-out-extracted"] == 0
    assert result.p_value < 0.001


def test_a_model_that_saw_neither_does_not_fail(subject):
    result = MemberExtraction().run(subject, Budget(600))
    assert isinstance(result, TestResult)
    assert result.verdict is Verdict.INCONCLUSIVE  # so few records rule nothing out
    assert values(result)["members-extracted"] == 0


def test_records_that_only_others_know_are_no_leak(overfit):
    north = overfit.sites["north"]
    swapped = replace(north, split=Split(north.held_out, north.members))
    result = MemberExtraction().run(replace(overfit, sites={"north": swapped}), Budget(600))
    assert isinstance(result, TestResult)
    assert result.verdict is not Verdict.FAIL
    assert values(result)["held-out-extracted"] >= 0.5


def test_one_look_finds_what_greedy_decoding_writes(overfit):
    records = [*overfit.sites["north"].members[:6], *overfit.sites["north"].held_out[:6]]
    found = continuations(overfit.model.model, overfit, records)
    for record, (right, wanted) in zip(records, found, strict=True):
        tokens = torch.tensor([overfit.blueprint.task.encode(record).tokens])
        assert wanted == tokens.shape[1] // 2
        with torch.no_grad():
            written = _greedy(overfit.model.model, tokens[:, :-wanted], wanted)[0]
        agree = (written == tokens[0, -wanted:]).tolist()
        assert right == (agree.index(False) if False in agree else wanted)
    assert {right == wanted for right, wanted in found} == {True, False}


def made_up(rng, members, others, chances):
    """Records of 10 tokens that come out whole with the chance of their side."""
    member = np.repeat([True, False], (members, others))
    whole = rng.random(len(member)) < np.where(member, *chances)
    wanted = np.full(len(member), 10)
    return Continued("north", member, np.where(whole, wanted, 3), wanted)


def verdicts(chances, seeds, *, members=900, others=100):
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        made = made_up(rng, members, others, chances)
        found.append(extraction_result([made], rng).verdict)
    return found


@pytest.mark.parametrize("chance", [0.01, 0.3])
def test_what_members_and_others_share_is_flagged_in_at_most_one_of_twenty_runs(chance):
    assert verdicts((chance, chance), 200).count(Verdict.FAIL) <= 0.05 * 200 + 2 * 3.1


def test_the_stated_effect_is_found_as_often_as_is_said():
    made = made_up(np.random.default_rng(0), 900, 100, (0.0, 0.0))
    effect = extraction_result([made], np.random.default_rng(0)).smallest_effect
    assert effect is not None
    flagged = verdicts((effect.value, 0.0), 100).count(Verdict.FAIL)
    assert 65 <= flagged <= 95


def test_enough_records_of_which_none_comes_out_pass():
    assert set(verdicts((0.0, 0.0), 3, members=2000, others=300)) == {Verdict.PASS}
    assert set(verdicts((0.0, 0.0), 3, members=60, others=20)) == {Verdict.INCONCLUSIVE}


def test_records_too_short_to_cut_are_left_out(subject):
    rng = np.random.default_rng(1)
    short = [Record("".join(rng.choice(LETTERS, FEWEST))) for _ in range(40)]
    north = replace(subject.sites["north"], split=Split(short[:20], short[20:]))
    result = MemberExtraction().run(replace(subject, sites={"north": north}), Budget(600))
    assert isinstance(result, NotRun)
    assert "Too few records" in result.reason


def test_without_time_it_says_so(subject):
    with pytest.raises(AuditError, match="expected time"):
        MemberExtraction().run(subject, Budget(0.0))
