"""The parts of membership inference against oracles: scores, strata, targets, claims."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from audit.intervals import delong, delong_difference
from audit.membership.attacks import (
    DIRECT,
    RMIA_SLOPE,
    WITH_REFERENCES,
    Evidence,
    References,
)
from audit.membership.claims import largest_auc
from audit.membership.findings import ALPHA, BEYOND_ALPHA, draws_for
from audit.membership.observations import Observation, observe
from audit.membership.strata import OVERALL, Stratum, auc_over, exceeds, permutation_p_values
from audit.membership.targets import targets_of
from core.data.held_out import Split, hold_out
from core.data.records import Record
from core.errors import ScoreError
from tests.support.membership import config_with, random_records, split_at_random, subject_with

ATTACKS = {attack.name: attack for attack in (*DIRECT, *WITH_REFERENCES)}


def normal_stratum(rng, site="north", inside=30, outside=20, shift=0.0) -> Stratum:
    scores = np.concatenate([rng.normal(shift, 1, inside), rng.normal(0, 1, outside)])
    return Stratum(site, np.repeat([True, False], [inside, outside]), {"loss": scores})


# What is read off a model


def test_what_is_read_off_a_language_model_is_what_its_tokens_say_one_by_one():
    config = config_with("causal-lm", {"north": 60})
    records = [Record("ab"), Record("a longer text"), Record("x")]
    subject = subject_with(config, {"north": None})
    for parameter in subject.model.model.parameters():
        parameter.data.add_(
            torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
        )
    found = observe(subject.model.model, subject, records)
    task = subject.blueprint.task
    for index, record in enumerate(records):
        batch = task.collate([task.encode(record)])
        with torch.no_grad():
            logits = subject.model.model(batch.tokens, batch.attention_mask)[0].double().numpy()
        tokens, plus = [], []
        for place, wanted in enumerate(batch.tokens[0, 1:].tolist()):
            p = np.exp(logits[place] - logits[place].max())
            p /= p.sum()
            mean = float(p @ np.log(p))
            deviation = math.sqrt(float(p @ (np.log(p) - mean) ** 2))
            tokens.append(math.log(p[wanted]))
            plus.append((tokens[-1] - mean) / deviation)
        lowest = math.ceil(0.2 * len(tokens))
        assert found.loss[index] == pytest.approx(-np.mean(tokens), rel=1e-4)
        assert found["total"][index] == pytest.approx(-np.sum(tokens), rel=1e-4)
        assert found["min-k"][index] == pytest.approx(np.mean(sorted(tokens)[:lowest]), rel=1e-4)
        assert found["min-k++"][index] == pytest.approx(np.mean(sorted(plus)[:lowest]), rel=1e-4)


def test_a_text_of_one_token_has_a_min_k_score():
    subject = subject_with(config_with("causal-lm", {"north": 60}), {"north": None})
    found = observe(subject.model.model, subject, [Record(""), Record("a"), Record("a" * 40)])
    assert np.isfinite(found["min-k"]).all()
    assert np.isfinite(found["min-k++"]).all()


def test_a_label_s_confidence_and_the_entropy_are_those_of_its_probabilities():
    subject = subject_with(config_with("classification", {"north": 60}), {"north": None})
    records = random_records(5, seed=1)
    found = observe(subject.model.model, subject, records)
    p = np.exp(-found.loss)
    assert found.confidence == pytest.approx(np.log(p / (1 - p)), rel=1e-6)
    assert found["entropy"] == pytest.approx(-(p * np.log(p) + (1 - p) * np.log(1 - p)), rel=1e-6)


# Scores


def some_references(rng, count=40) -> References:
    saw = np.zeros((8, count), dtype=np.bool_)
    for pair in range(4):
        saw[2 * pair] = rng.permutation(count) < count // 2
        saw[2 * pair + 1] = ~saw[2 * pair]
    seen = []
    for row in saw:
        loss = rng.exponential(1.0, count) - 0.3 * row + 0.3
        seen.append(Observation({"loss": loss, "confidence": -loss}))
    return References(tuple(seen), saw)


def test_the_ratio_of_rmia_ranks_records_as_its_share_of_the_population_does():
    rng = np.random.default_rng(1)
    references = some_references(rng)
    loss = rng.exponential(1.0, 40)
    evidence = Evidence(Observation({"loss": loss, "confidence": -loss}), np.ones(40), references)
    found = ATTACKS["rmia"].score(evidence)
    a = RMIA_SLOPE
    ratios = []
    for record in range(40):
        unseen = np.mean(np.exp(-references.losses[~references.saw[:, record], record]))
        ratios.append(math.exp(-loss[record]) / (((1 + a) * unseen + 1 - a) / 2))
    assert found == pytest.approx(ratios)
    population = rng.uniform(0.1, 2, 1000)  # ratios of records from elsewhere, gamma 1
    shares = np.array([np.mean(ratio / population >= 1) for ratio in ratios])
    order = np.argsort(found)
    assert (np.diff(shares[order]) >= 0).all()


def test_lira_is_the_log_likelihood_ratio_of_two_normals():
    rng = np.random.default_rng(2)
    references = some_references(rng)
    confidence = rng.normal(size=40)
    evidence = Evidence(
        Observation({"loss": -confidence, "confidence": confidence}), np.ones(40), references
    )
    found = ATTACKS["lira"].score(evidence)
    squares = 0.0
    means = []
    for record in range(40):
        values, saw = references.confidences[:, record], references.saw[:, record]
        means.append((values[saw].mean(), values[~saw].mean()))
        squares += values[saw].var() * 4 + values[~saw].var() * 4
    deviation = math.sqrt(squares / (8 * 40 - 2 * 40))
    for record, (inside, outside) in enumerate(means):
        ratio = norm.logpdf(confidence[record], inside, deviation) - norm.logpdf(
            confidence[record], outside, deviation
        )
        assert found[record] == pytest.approx(ratio)


def test_references_that_all_saw_a_record_are_refused():
    seen = Observation({"loss": np.ones(3), "confidence": np.ones(3)})
    references = References((seen, seen), np.ones((2, 3), dtype=np.bool_))
    with pytest.raises(ScoreError, match="expected reference models on both sides"):
        ATTACKS["reference"].score(Evidence(seen, np.ones(3), references))


# Strata


def test_an_auc_over_sites_compares_no_records_of_different_sites():
    rng = np.random.default_rng(3)
    one, two = normal_stratum(rng, "one"), normal_stratum(rng, "two", 50, 40)
    moved = Stratum("two", two.member, {"loss": two.scores["loss"] + 100})
    assert auc_over([one, two], "loss", 0.95) == auc_over([one, moved], "loss", 0.95)
    pooled = np.concatenate([one.scores["loss"], moved.scores["loss"]])
    member = np.concatenate([one.member, moved.member])
    assert delong(pooled[member], pooled[~member]).auc != pytest.approx(
        auc_over([one, moved], "loss", 0.95).auc
    )


def test_an_auc_of_one_site_is_delong_s():
    stratum = normal_stratum(np.random.default_rng(4))
    assert auc_over([stratum], "loss", 0.9) == delong(*stratum.sides("loss"), 0.9)


def test_a_difference_at_one_site_is_delong_s_one_sided():
    rng = np.random.default_rng(5)
    first, second = normal_stratum(rng, shift=1.0), normal_stratum(rng)
    expected = delong_difference(*first.sides("loss"), *second.sides("loss"))
    found = exceeds([first], "loss", [second])
    assert found.value == pytest.approx(expected.difference)
    assert found.p_value == pytest.approx(expected.p_value / 2)
    assert exceeds([second], "loss", [first]).p_value == pytest.approx(1 - expected.p_value / 2)


def test_an_interval_over_three_sites_covers_and_excludes_another_auc():
    rng = np.random.default_rng(6)
    truth = norm.cdf(0.8 / math.sqrt(2))
    covers = rejects = 0
    for _ in range(400):
        strata = [normal_stratum(rng, site, 40, 25, shift=0.8) for site in ("a", "b", "c")]
        interval = auc_over(strata, "loss", 0.95).interval
        covers += interval.low <= truth <= interval.high
        rejects += not interval.low <= 0.5 <= interval.high
    assert covers >= 0.92 * 400
    assert rejects >= 0.95 * 400


@pytest.mark.parametrize("runs", [200, pytest.param(2000, marks=pytest.mark.soak)])
def test_p_values_are_uniform_where_nothing_was_learned(runs):
    rng = np.random.default_rng(7)
    overall, site = [], []
    for _ in range(runs):
        strata = [normal_stratum(rng, name, 24, 12) for name in ("a", "b")]
        found = permutation_p_values(strata, ["loss"], rng, draws=199)
        overall.append(found["loss", OVERALL])
        site.append(found["loss", "a"])
    for p_values in (overall, site):
        assert kstest(p_values, "uniform").pvalue > 0.001
        assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    # The same rule sees an effect that is there.
    strata = [normal_stratum(rng, name, 24, 12, shift=1.5) for name in ("a", "b")]
    assert permutation_p_values(strata, ["loss"], rng, draws=999)["loss", OVERALL] < 0.01


def test_a_two_sided_p_value_sees_what_a_one_sided_does_not():
    rng = np.random.default_rng(8)
    strata = [normal_stratum(rng, shift=-2.0)]
    one = permutation_p_values(strata, ["loss"], rng, draws=499)["loss", OVERALL]
    two = permutation_p_values(strata, ["loss"], rng, draws=499, two_sided=True)["loss", OVERALL]
    assert one > 0.9
    assert two < 0.01


# Targets


@pytest.mark.parametrize("seed", range(5))
def test_which_records_are_targets_does_not_follow_from_their_side(seed):
    rng = np.random.default_rng(seed)
    records = tuple(
        Record(f"text {rng.integers(150)}", "calm", person=f"p{rng.integers(90)}")
        for _ in range(200)
    )
    config = config_with("classification", {"north": 60})
    kept = []
    for key in (b"one", b"another"):
        split = hold_out(records, 0.5, key)
        found = targets_of(subject_with(config, {"north": split}))["north"]
        assert 20 <= len(found) < len({record.person for record in records})
        kept.append(sorted(found.texts))
    assert kept[0] == kept[1]


def test_a_text_that_two_persons_or_two_sites_have_is_no_target():
    own = [Record(f"own {index}", "calm", person=f"p{index}") for index in range(40)]
    shared = [Record("The  SAME text", "calm", person="q1"), Record("the same text", "calm", "q2")]
    elsewhere = [Record(f"other {index}", "calm", person=f"p{index}") for index in range(40)]
    twice = [Record("a second record of p3", "calm", person="p3")]
    config = config_with("classification", {"north": 60, "south": 60})
    north = Split((*own[:25], shared[0], *twice), (*own[25:], shared[1]))
    south = Split((*elsewhere[:25], own[3]), elsewhere[25:])
    found = targets_of(subject_with(config, {"north": north, "south": south}))
    texts = found["north"].texts
    assert len(texts) == len(set(texts)) == 40
    assert "own 3" not in texts
    assert "a second record of p3" in texts
    assert not any("same" in text.casefold() for text in texts)
    assert found["north"].dropped == 3
    assert found["north"].member.sum() == 25


def test_a_site_with_too_few_held_out_records_has_no_targets():
    split = split_at_random(random_records(20, seed=1), seed=2)
    assert (
        targets_of(subject_with(config_with("classification", {"north": 60}), {"north": split}))
        == {}
    )


# Claims


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (1.0, 1e-5), (3.0, 0.01), (8.0, 0.2)])
def test_the_largest_auc_is_the_area_under_what_privacy_allows(epsilon, delta):
    rates = np.linspace(0, 1, 200_001)
    first = np.exp(epsilon) * rates + delta
    second = 1 - np.exp(-epsilon) * (1 - delta - rates)
    area = np.trapezoid(np.minimum(np.minimum(first, second), 1.0), rates)
    assert largest_auc(epsilon, delta) == pytest.approx(area, abs=1e-6)


def test_without_delta_the_largest_auc_is_the_odds_of_epsilon():
    for epsilon in (0.0, 0.5, 2.0):
        assert largest_auc(epsilon, 0.0) == pytest.approx(1 / (1 + math.exp(-epsilon)))


def test_randomised_response_reaches_the_largest_auc_and_no_more():
    # Its ROC has one corner: the share of truthful answers.
    truthful = math.exp(1.5) / (1 + math.exp(1.5))
    assert largest_auc(1.5, 0.0) == pytest.approx(truthful)
    assert largest_auc(1.4, 0.0) < truthful


def test_another_seed_hardly_moves_a_p_value_at_the_threshold() -> None:
    tests = 12
    inside, outside = (norm.ppf((np.arange(n) + 0.5) / n) for n in (150, 50))
    draws = draws_for(tests, ALPHA, BEYOND_ALPHA)
    # Near alpha after a correction for twelve tests.
    scores = np.concatenate([inside + 0.43, outside])
    stratum = Stratum("a", np.arange(200) < 150, {"x": scores})
    found = [
        permutation_p_values([stratum], ["x"], np.random.default_rng(seed), draws=draws)["x", ""]
        for seed in range(30)
    ]

    assert 0.1 * ALPHA < tests * np.mean(found) < 10 * ALPHA
    assert np.std(found) < 0.2 * max(np.mean(found), ALPHA / tests)
