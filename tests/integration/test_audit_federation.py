"""What updates give away: found where nothing protects them, not found where something does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audit.federation.backdoor import Backdoor
from audit.federation.embedding_rows import EmbeddingRows
from audit.federation.gradient_span import GradientSpan, recovered_share
from audit.federation.property_inference import PropertyInference, told_apart
from audit.federation.snapshots import Snapshots
from audit.federation.source import SourceInference
from audit.federation.updates import NO_SHARED_NOISE, judge, notes_on, one_of_each, smallest_mean
from audit.intervals import clopper_pearson, permutation_p, wilson
from audit.subject import Subject, open_subject
from audit.verdicts import AuditTest, Budget, Interval, NotRun, TestResult, Verdict
from core.config_sections import SecureAggregationSection
from core.data.records import Record
from tests.support.audited import simulated_run
from tests.support.federation import FEDERATION

WIDE = (
    FEDERATION.replace("n_embd = 16", "n_embd = 64")
    .replace("max_seq_len = 16", "max_seq_len = 40")
    .replace("num_examples = 40", "num_examples = 120")
)
OPEN = WIDE.replace("noise_multiplier = 1.0\nmax_grad_norm = 1.0", 'mode = "none"').replace(
    "[simulation]", "[simulation]\nallow_non_private = true"
)
ALL: tuple[AuditTest, ...] = (
    EmbeddingRows(),
    GradientSpan(),
    SourceInference(),
    PropertyInference(),
    Backdoor(),
    Snapshots(),
)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("private")
    return open_subject(simulated_run(folder, federation=WIDE, count=150))


@pytest.fixture(scope="module")
def in_the_open(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("open")
    return open_subject(simulated_run(folder, federation=OPEN, count=150))


def found(test: AuditTest, subject: Subject) -> TestResult:
    result = test.run(subject, Budget(120))
    assert isinstance(result, TestResult), result
    return result


def measured(result: TestResult, name: str) -> float:
    value = next(m.value for m in result.measures if m.name == name)
    assert value is not None
    return value


def test_words_and_texts_are_read_out_of_updates_without_noise(in_the_open: Subject) -> None:
    rows, span = found(EmbeddingRows(), in_the_open), found(GradientSpan(), in_the_open)

    assert measured(rows, "embedding-row-auc") >= 0.95
    assert measured(span, "tokens-recovered") >= 0.95
    assert (rows.verdict, span.verdict) == (Verdict.FAIL, Verdict.FAIL)


def test_they_are_not_where_there_is_noise(private: Subject) -> None:
    rows, span = found(EmbeddingRows(), private), found(GradientSpan(), private)

    assert measured(rows, "embedding-row-auc") <= 0.7
    assert measured(span, "tokens-recovered") <= 0.3
    assert span.verdict is Verdict.PASS
    assert rows.verdict is not Verdict.FAIL


@pytest.mark.parametrize(
    "test", [EmbeddingRows(), GradientSpan(), SourceInference(), PropertyInference()]
)
def test_what_only_a_sum_shows_nobody_reads_out_of_an_update(
    in_the_open: Subject, test: AuditTest
) -> None:
    config = in_the_open.config.model_copy(
        update={"secure_aggregation": SecureAggregationSection()}
    )

    result = found(test, replace(in_the_open, config=config))
    assert result.verdict is Verdict.PASS
    assert "Nobody" in result.headline
    assert any("opens sums alone" in note for note in result.notes)


def test_a_poisoned_site_gains_and_an_honest_one_does_not(in_the_open: Subject) -> None:
    result = found(Backdoor(), in_the_open)

    gain = next(m for m in result.measures if m.name == "trigger-gain")
    assert gain.interval is not None
    assert gain.interval.low > 0
    assert result.verdict is not Verdict.FAIL  # an average promises nothing against poison


def test_a_robust_rule_that_lets_poison_through_fails(in_the_open: Subject) -> None:
    strategy = in_the_open.config.strategy.model_copy(update={"name": "fedmedian"})
    config = in_the_open.config.model_copy(update={"strategy": strategy})

    bears, average = (
        found(Backdoor(), subject) for subject in (replace(in_the_open, config=config), in_the_open)
    )
    assert measured(bears, "trigger-gain") < measured(average, "trigger-gain")


def test_nothing_is_ascribed_to_sites_that_are_alike(private: Subject) -> None:
    result = found(SourceInference(), private)

    assert abs(measured(result, "source-excess")) < 0.25  # five deviations
    assert result.verdict is not Verdict.FAIL


def test_two_models_in_a_row_of_a_private_run_tell_nobody_apart(private: Subject) -> None:
    result = found(Snapshots(), private)

    assert abs(measured(result, "snapshot-auc") - 0.5) < 0.15  # five deviations
    assert result.verdict is not Verdict.FAIL


@pytest.fixture(scope="module")
def elsewhere(private: Subject, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Of a deployed run: no site's records, no checkpoints."""
    sites = {name: replace(site, split=None) for name, site in private.sites.items()}
    return replace(private, sites=sites, folder=tmp_path_factory.mktemp("exported"))


@pytest.mark.parametrize("test", ALL, ids=lambda test: test.card.id)
def test_what_is_not_at_hand_is_not_judged(elsewhere: Subject, test: AuditTest) -> None:
    outcome = test.run(elsewhere, Budget(60))

    assert isinstance(outcome, NotRun)
    assert "hand" in outcome.reason or "records" in outcome.reason


@pytest.mark.parametrize(
    "test", [SourceInference(), Backdoor(), PropertyInference()], ids=lambda test: test.card.id
)
def test_who_has_no_time_decides_nothing(in_the_open: Subject, test: AuditTest) -> None:
    outcome = test.run(in_the_open, Budget(0))

    assert isinstance(outcome, TestResult)
    assert outcome.verdict is Verdict.INCONCLUSIVE


def test_tokens_of_one_record_are_no_independent_evidence() -> None:
    # Half of the records in full, half of them not at all: twelve facts, and not 480.
    counts = np.array([(40.0 * (number % 2), 40.0) for number in range(12)])

    found = recovered_share(counts, np.random.default_rng(0))
    alone = wilson(240, 480)
    assert found.high - found.low > 4 * (alone.high - alone.low)


@pytest.mark.parametrize("hits", [0.0, 30.0])
def test_records_that_are_all_alike_are_no_certainty(hits: float) -> None:
    counts = np.array([(hits, 30.0)] * 12)

    found = recovered_share(counts, np.random.default_rng(0))
    exact = clopper_pearson(12 if hits else 0, 12)
    assert (found.low, found.high) == (exact.low, exact.high)


def test_three_records_without_a_hit_are_too_few_to_pass() -> None:
    found = recovered_share(np.array([(0.0, 30.0)] * 3), np.random.default_rng(0))

    assert judge(found, 0.5, observable=True) is Verdict.INCONCLUSIVE


def test_shadow_sites_that_do_not_differ_are_told_apart_as_often_as_alpha_says() -> None:
    rng = np.random.default_rng(1)
    kinds = np.arange(24) % 2
    found = []
    for _ in range(200):
        right, by_chance = told_apart(rng.standard_normal((24, 128)), kinds, rng)
        found.append(permutation_p(right, by_chance) <= 0.05)

    assert np.mean(found) <= 0.10  # three deviations above 5 %


def test_shadow_sites_that_differ_are_told_apart() -> None:
    rng = np.random.default_rng(2)
    kinds = np.arange(24) % 2

    right, by_chance = told_apart(rng.standard_normal((24, 128)) + kinds[:, None], kinds, rng)
    assert right >= 22
    assert permutation_p(right, by_chance) <= 0.001


@pytest.mark.parametrize(
    ("right", "verdict", "words"),
    [
        ((550, 415), Verdict.INCONCLUSIVE, "give away which site"),
        ((530, 480), Verdict.PASS, "hardly gives away"),
        ((500, 500), Verdict.PASS, "was not seen"),
        ((700, 300), Verdict.FAIL, "can tell"),
    ],
)
def test_what_surely_leaks_is_said_whatever_the_verdict(
    in_the_open: Subject, right: tuple[int, int], verdict: Verdict, words: str
) -> None:
    counts = {"members": right[0] * 4, "held_out": right[1] * 4}
    asked = (4000, 4000)
    if verdict is Verdict.INCONCLUSIVE:
        counts, asked = {"members": right[0], "held_out": right[1]}, (1000, 1000)
    result = SourceInference()._result(in_the_open, counts, *asked, 3)

    assert result.verdict is verdict
    assert words in result.headline


def test_a_person_brings_one_record() -> None:
    records = [Record(f"text {n}", person=f"person {n % 3}") for n in range(30)]
    records += [Record("twice"), Record("twice")]

    chosen = one_of_each(records, 100, np.random.default_rng(0))
    assert sorted(record.person or "" for record in chosen) == [
        *("", "person 0", "person 1", "person 2")
    ]
    assert len(one_of_each(records, 2, np.random.default_rng(0))) == 2


def test_the_smallest_effect_is_found_as_often_as_is_said() -> None:
    rng = np.random.default_rng(3)
    drawn = rng.normal(smallest_mean(0.05, 0.5), 0.05, 4000)
    found = [
        judge(
            Interval(low=d - 1.96 * 0.05, high=d + 1.96 * 0.05, confidence=0.95, method="normal"),
            0.5,
            observable=True,
        )
        for d in drawn.tolist()
    ]

    assert abs(found.count(Verdict.FAIL) / 4000 - 0.8) < 0.02


@pytest.mark.parametrize(
    ("test", "harmful"),
    [(EmbeddingRows(), 0.6), (GradientSpan(), 0.5), (SourceInference(), 0.1), (Snapshots(), 0.6)],
    ids=lambda given: given.card.id if hasattr(given, "card") else "",
)
def test_what_would_have_been_found_lies_beyond_what_is_harmful(
    private: Subject, test: AuditTest, harmful: float
) -> None:
    effect = found(test, private).smallest_effect

    assert effect is not None
    assert effect.value > harmful
    assert effect.power == 0.8


def test_a_single_site_of_shared_noise_is_said_to_have_none(private: Subject) -> None:
    privacy = private.config.privacy.model_copy(update={"mode": "distributed"})
    config = private.config.model_copy(update={"privacy": privacy})

    assert NO_SHARED_NOISE in notes_on(replace(private, config=config))
    assert NO_SHARED_NOISE not in notes_on(private)


def test_the_same_subject_gives_the_same_result(in_the_open: Subject, tmp_path: Path) -> None:
    first, second = (found(GradientSpan(), in_the_open) for _ in range(2))

    assert first == second
