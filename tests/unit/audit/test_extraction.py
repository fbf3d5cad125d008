import itertools
import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from audit.canaries.claim import Claim
from audit.extraction.emission import (
    Extraction,
    edit_distance,
    emission_result,
    emitted,
    suffix_length,
)
from audit.extraction.exposure import (
    REFERENCES,
    Exposed,
    Exposure,
    allowed_bits,
    exposed,
    exposure_result,
    rank_sum_p_value,
    smallest_win,
)
from audit.extraction.secrets import (
    REPETITIONS,
    draw_alike,
    draw_secrets,
    group_delta,
    train_on,
    why_no_secrets,
)
from audit.verdicts import Budget, NotRun, TestResult, Verdict
from core.audit_seed import AuditSeed
from core.errors import AuditError
from tests.support.audited import simulated_subject
from tests.support.federation import FEDERATION
from tests.support.language_subject import language_subject

WIDE = (
    FEDERATION.replace("num_examples = 40", "num_examples = 800")
    .replace("global_batch_size = 8", "global_batch_size = 100")
    .replace("micro_batch_size = 4", "micro_batch_size = 64")
    .replace("n_embd = 16", "n_embd = 32")
    .replace("noise_multiplier = 1.0", "noise_multiplier = 3.0")
)
PLAIN = WIDE.replace("noise_multiplier = 3.0", 'mode = "none"').replace(
    "[simulation]", "[simulation]\nallow_non_private = true"
)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return simulated_subject(tmp_path_factory.mktemp("private"), federation=WIDE)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return simulated_subject(tmp_path_factory.mktemp("plain"), federation=PLAIN)


def reseeded(subject, number):
    return replace(subject, seed=AuditSeed(number.to_bytes(32, "big")))


def trained_long(subject, *, steps=100, learning_rate=1e-2):
    train = replace(
        subject.config.train, steps_per_round=steps, learning_rate=learning_rate, warmup_steps=0
    )
    return replace(subject, config=subject.config.model_copy(update={"train": train}))


@pytest.fixture(scope="module")
def overfit(plain):
    """A decoder that is trained until it knows secrets by heart; beside it what it was before."""
    train = trained_long(plain, steps=60).config.train
    subject = language_subject(plain, train=train, n_embd=64, n_head=4)
    secrets = draw_secrets(subject, "exposure")
    return subject, secrets, train_on(subject, secrets.records, name="exposure", budget=Budget(600))


def test_an_overfit_model_is_exposed_to_the_cap(overfit):
    subject, secrets, model = overfit
    *_, often = exposed(model, subject, secrets)
    assert often.times == 16
    assert min(often.bits) == math.log2(REFERENCES + 1)
    assert often.p_value < 1e-6


def test_an_overfit_model_writes_out_what_it_saw_and_the_control_does_not(overfit):
    subject, secrets, model = overfit
    length = suffix_length(secrets.by_repetition[1][0])
    control = emitted(subject.model.model, subject, secrets)
    result = emission_result(emitted(model, subject, secrets), control, 259, length)
    share = {m.name: m.value for m in result.measures}
    assert share["extracted-16"] > 0.8
    assert result.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)
    assert "write out" in result.headline
    by_times = {row[0]: row for row in result.tables[0].rows}
    _, _, exact, distance, log_chance, *of_control = by_times[16]
    assert exact > 12
    assert distance < 0.5
    assert log_chance > -1
    assert of_control[0] == 0
    assert of_control[1] > 3
    assert of_control[2] < -8


def test_a_model_that_hardly_learns_writes_nothing_out(plain):
    train = replace(plain.config.train, learning_rate=1e-6)
    result = Extraction().run(language_subject(plain, train=train), Budget(600))
    assert isinstance(result, TestResult)
    assert result.verdict == Verdict.PASS
    assert result.p_value == 1.0


def test_a_private_run_exposes_no_secret_of_a_single_record(subject):
    result = Exposure().run(subject, Budget(600))
    assert isinstance(result, TestResult)
    rows = {row[0]: row for row in result.tables[0].rows}
    _, count, mean, _, p_value, epsilon, delta = rows[1]
    assert count == 16
    assert mean < 3.5  # 1.44 is chance, with a deviation of 0.36
    assert p_value > 1e-4
    assert epsilon < 1
    assert delta == pytest.approx(1e-5)
    assert rows[16][5] == pytest.approx(16 * epsilon)


def test_a_model_that_saw_no_secret_gives_uniform_p_values(plain):
    check_uniform(plain, seeds=8)


@pytest.mark.soak
def test_a_model_that_saw_no_secret_gives_uniform_p_values_over_many_seeds(plain):
    check_uniform(plain, seeds=334)


def check_uniform(subject, *, seeds):
    model, found = subject.initial_model(), []
    for number in range(seeds):
        another = reseeded(subject, number)
        secrets = draw_secrets(another, "control")
        found += [e.p_value for e in exposed(model, another, secrets)]
    assert uniform(found)
    assert not uniform([p**3 for p in found])  # of a rule that finds what is not there


def uniform(p_values):
    count = len(p_values)
    for level in (0.05, 0.5):
        expected, spread = count * level, math.sqrt(count * level * (1 - level))
        if abs(sum(p <= level for p in p_values) - expected) > 2.5 * spread:
            return False
    return True


def test_rank_sums_have_the_p_value_that_counting_gives():
    for count, n in ((1, 6), (2, 5), (3, 4), (4, 3)):
        sums = [sum(ranks) for ranks in itertools.product(range(1, n + 1), repeat=count)]
        for ranks in itertools.product(range(1, n + 1), repeat=count):
            wanted = sum(total <= sum(ranks) for total in sums) / len(sums)
            assert rank_sum_p_value(ranks, n) == pytest.approx(wanted, abs=1e-12)


def test_the_best_of_all_ranks_has_a_p_value_above_zero():
    assert rank_sum_p_value([1] * 16, 512) == pytest.approx(512.0**-16)
    assert rank_sum_p_value([512] * 16, 512) == 1.0


def test_the_smallest_win_is_found_as_often_as_is_said():
    win = smallest_win(16, 1)
    rng = np.random.default_rng(3)
    # Normal scores of a shift that beats a reference with this chance.
    for chance, low, high in ((win, 0.7, 0.9), (0.5, 0.0, 0.08)):
        shift = math.sqrt(2) * NormalDist().inv_cdf(chance)
        hits = 0
        for _ in range(300):
            others = rng.normal(size=(16, REFERENCES))
            secret = rng.normal(shift, size=(16, 1))
            ranks = 1 + (others >= secret).sum(axis=1)
            hits += rank_sum_p_value(ranks.tolist(), REFERENCES + 1) <= 0.05
        assert low <= hits / 300 <= high
    assert smallest_win(1, 3) is None


CLAIM = Claim(2.0, 1e-5, 4, 2.0)


def ranked(times, rank, count=16):
    ranks = (rank,) * count
    return Exposed(times, ranks, rank_sum_p_value(ranks, REFERENCES + 1))


@pytest.mark.parametrize(
    ("ranks", "verdict", "said"),
    [
        ((1, 1, 1), Verdict.FAIL, "a single record"),
        ((256, 256, 1), Verdict.INCONCLUSIVE, "stand in 16 records or more"),
        ((256, 1, 1), Verdict.INCONCLUSIVE, "stand in 4 records or more"),
        ((256, 256, 256), Verdict.PASS, "No planted secret is remembered"),
    ],
)
def test_the_verdict_follows_the_single_record(ranks, verdict, said):
    found = [ranked(times, rank) for times, rank in zip(REPETITIONS, ranks, strict=True)]
    result = exposure_result("X1", found, CLAIM)
    assert result.verdict == verdict
    assert said in result.headline


def test_a_claim_allows_more_exposure_than_chance_and_never_more_than_can_be_seen():
    chance = np.log2((REFERENCES + 1) / np.arange(1, REFERENCES + 2)).mean()
    allowed = [allowed_bits(1, Claim(e, 1e-12, 4, e)) for e in (0.0, 0.5, 2.0, 30.0)]
    assert allowed[0] == pytest.approx(chance)
    # Bits that a likelihood ratio of exp(epsilon) is worth.
    assert allowed[2] - allowed[0] == pytest.approx(2.0 / math.log(2), abs=0.1)
    assert allowed == sorted(allowed)
    assert allowed[-1] == math.log2(REFERENCES + 1)
    assert allowed_bits(4, CLAIM) == allowed_bits(1, Claim(8.0, group_delta(4, 2.0, 1e-5), 4, 8.0))
    assert allowed_bits(1, Claim(None, 1e-5, 4, None)) is None
    result = exposure_result("X1", [ranked(times, 1) for times in REPETITIONS], CLAIM)
    assert result.measures[0].limit == allowed_bits(1, CLAIM)
    assert "the claim allows 4.3" in result.headline


def test_too_few_secrets_do_not_pass():
    found = [ranked(times, 256, count=2) for times in REPETITIONS]
    result = exposure_result("X1", found, CLAIM)
    assert result.verdict == Verdict.INCONCLUSIVE
    assert "too few" in result.headline


def test_secrets_stand_as_often_as_is_said_and_are_no_special_tokens(plain):
    secrets = draw_secrets(plain, "exposure")
    assert secrets == draw_secrets(plain, "exposure")
    assert secrets != draw_secrets(plain, "extraction")
    counts = {times: len(found) for times, found in secrets.by_repetition.items()}
    assert counts == dict.fromkeys(REPETITIONS, 16)
    assert len(secrets.records) == 16 * sum(REPETITIONS)
    tokenizer = plain.model.tokenizer
    for record in secrets.records:
        opening, *rest = record.example.tokens
        assert opening == tokenizer.bos_id
        assert not {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id} & set(rest)
        assert max(rest) < tokenizer.vocab_size


def test_references_have_the_secrets_label_and_other_tokens(plain):
    secret = draw_secrets(plain, "exposure").by_repetition[1][0]
    others = draw_alike(plain, np.random.default_rng(0), 50, secret)
    assert {other.label for other in others} == {secret.label}
    assert secret.tokens not in {other.tokens for other in others}


def test_groups_of_records_share_less_and_less_privacy():
    assert group_delta(1, 2.0, 1e-5) == pytest.approx(1e-5)
    assert group_delta(4, 2.0, 1e-5) == pytest.approx(4 * math.exp(6) * 1e-5)
    assert group_delta(16, 8.0, 1e-5) == 1.0


def test_edit_distance_is_the_fewest_changes():
    texts = ["", "a", "ab", "ba", "abc", "cab", "kitten", "sitting"]
    for first, second in itertools.product(texts, repeat=2):
        distance = edit_distance([*map(ord, first)], [*map(ord, second)])
        assert distance == naive_distance(first, second)
    assert naive_distance("kitten", "sitting") == 3


def naive_distance(first, second):
    if not first or not second:
        return len(first) + len(second)
    return min(
        naive_distance(first[1:], second) + 1,
        naive_distance(first, second[1:]) + 1,
        naive_distance(first[1:], second[1:]) + (first[0] != second[0]),
    )


def test_an_untrained_model_emits_nothing(plain):
    subject = language_subject(plain)
    for found in emitted(subject.model.model, subject, draw_secrets(subject, "extraction")):
        assert found.exact == 0
        assert found.log_probability == pytest.approx(4 * math.log(1 / 300), rel=0.1)


def test_time_that_runs_out_is_an_error_with_a_name(plain):
    with pytest.raises(AuditError, match="expected time"):
        Exposure().run(plain, Budget(0.0))


def test_a_classifier_has_nothing_to_extract(subject):
    result = Extraction().run(subject, Budget(600))
    assert isinstance(result, NotRun)
    assert "emits no text" in result.reason


def test_without_records_at_hand_nothing_is_planted(subject):
    sites = {name: replace(site, split=None) for name, site in subject.sites.items()}
    result = Exposure().run(replace(subject, sites=sites), Budget(600))
    assert isinstance(result, NotRun)
    assert "at hand" in result.reason


def test_terms_that_cover_too_few_records_take_no_secrets(subject):
    sites = {
        name: replace(site, terms=site.terms.model_copy(update={"max_examples": 20}))
        for name, site in subject.sites.items()
    }
    assert "too few" in why_no_secrets(replace(subject, sites=sites))
