"""What updates give away: found where nothing protects them, not found where something does."""

from dataclasses import replace
from pathlib import Path

import pytest

from audit.federation.backdoor import Backdoor
from audit.federation.embedding_rows import EmbeddingRows
from audit.federation.gradient_span import GradientSpan
from audit.federation.property_inference import PropertyInference
from audit.federation.snapshots import Snapshots
from audit.federation.source import SourceInference
from audit.subject import Subject, open_subject
from audit.verdicts import AuditTest, Budget, NotRun, TestResult, Verdict
from core.config_sections import SecureAggregationSection
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


def test_the_same_subject_gives_the_same_result(in_the_open: Subject, tmp_path: Path) -> None:
    first, second = (found(GradientSpan(), in_the_open) for _ in range(2))

    assert first == second
