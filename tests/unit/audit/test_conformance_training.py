"""C2 to C6 on the real training, right and broken in each way that they are there to find."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from audit.conformance.mechanism import Mechanism
from audit.conformance.neighbours import Neighbours
from audit.conformance.noise import MeasuredNoise
from audit.conformance.noise_quality import NoiseQuality
from audit.conformance.sampling import Sampling
from audit.conformance.sensitivity import MeasuredSensitivity
from audit.subject import Subject
from audit.verdicts import Budget, NotRun, TestResult, Verdict
from tests.support import audit_breakage as breakage
from tests.support.audit_subjects import made_up_subject, with_spent
from tests.support.federation import FEDERATION

TESTS: tuple[Callable[[Mechanism], Any], ...] = (
    MeasuredNoise,
    MeasuredSensitivity,
    NoiseQuality,
    Sampling,
    Neighbours,
)
# What is broken, and the test that must say so.
BROKEN: dict[str, tuple[Callable[[Mechanism], Any], Callable[[], Mechanism]]] = {
    "no noise": (MeasuredNoise, breakage.no_noise),
    "noise x .9": (MeasuredNoise, lambda: breakage.scaled_noise(lambda plan: 0.9)),
    "noise x .5": (MeasuredNoise, lambda: breakage.scaled_noise(lambda plan: 0.5)),
    "noise / batch": (
        MeasuredNoise,
        lambda: breakage.scaled_noise(lambda plan: 1 / plan.expected_batch_size),
    ),
    "biases without noise": (MeasuredNoise, lambda: breakage.without_noise_on("bias")),
    "clip x 10": (MeasuredSensitivity, lambda: breakage.clip_times(10.0)),
    "clip x 1.05": (MeasuredSensitivity, lambda: breakage.clip_times(1.05)),
    "no clip": (MeasuredSensitivity, lambda: breakage.clip_times(float("inf"))),
    "batch clip": (MeasuredSensitivity, breakage.batch_clip),
    "one seed at all sites": (NoiseQuality, breakage.one_seed),
    "one noise in all steps": (NoiseQuality, breakage.cached_noise),
    "uniform noise": (NoiseQuality, breakage.uniform_noise),
    "nothing but zeros": (NoiseQuality, breakage.no_noise),
    "shuffling": (Sampling, breakage.shuffled),
    "q x 1.1": (Sampling, lambda: breakage.sampled_at(1.1)),
    "q x 2": (Sampling, lambda: breakage.sampled_at(2.0)),
    "more steps than charged": (Sampling, breakage.more_steps),
    "Opacus 571 and 819": (Neighbours, breakage.opacus_engine),
}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return made_up_subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # torch: of a model whose inputs are integers, on the hooks that Opacus registers.
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        yield


def outcome(test: Callable[[Mechanism], Any], mechanism: Mechanism, subject: Subject) -> TestResult:
    found = test(mechanism).run(subject, Budget(600))
    assert isinstance(found, TestResult)
    return found


@pytest.mark.parametrize("test", TESTS, ids=lambda test: str(test.__name__))
def test_a_right_training_passes(test: Callable[[Mechanism], Any], subject: Subject) -> None:
    result = outcome(test, Mechanism(), subject)
    assert result.verdict is Verdict.PASS, result.headline
    assert result.smallest_effect is not None
    assert result.smallest_effect.value <= 0.1


@pytest.mark.parametrize("name", BROKEN)
def test_each_break_is_caught_by_its_test(name: str, subject: Subject) -> None:
    test, mechanism = BROKEN[name]
    verdicts = {outcome(test, mechanism(), subject).verdict for _ in range(3)}
    assert verdicts == {Verdict.FAIL}


@pytest.mark.soak
@pytest.mark.parametrize("name", BROKEN)
def test_each_break_is_caught_20_times_of_20(name: str, subject: Subject) -> None:
    test, mechanism = BROKEN[name]
    found = [outcome(test, mechanism(), subject).verdict for _ in range(20)]
    assert found == [Verdict.FAIL] * 20


@pytest.mark.soak
@pytest.mark.parametrize("test", TESTS, ids=lambda test: str(test.__name__))
def test_a_right_training_fails_not_once_in_100(
    test: Callable[[Mechanism], Any], tmp_path: Path
) -> None:
    for seed in range(100):
        subject = made_up_subject(tmp_path / str(seed), seed=seed)
        result = outcome(test, Mechanism(), subject)
        assert result.verdict is Verdict.PASS, result.headline


def test_noise_a_tenth_too_small_lies_outside_its_interval(subject: Subject) -> None:
    right = outcome(MeasuredNoise, Mechanism(), subject).measures[0]
    wrong = outcome(MeasuredNoise, breakage.scaled_noise(lambda plan: 0.9), subject).measures[0]
    assert right.interval is not None
    assert wrong.interval is not None
    assert right.limit == wrong.limit == 1.0
    assert right.interval.low <= 1.0 <= right.interval.high
    assert wrong.interval.high < 1.0
    assert wrong.interval.low < 0.9 * 1.001
    assert wrong.interval.high > 0.9


def test_too_much_noise_is_not_what_was_charged_either(subject: Subject) -> None:
    result = outcome(MeasuredNoise, breakage.scaled_noise(lambda plan: 1.1), subject)
    assert result.verdict is Verdict.FAIL
    assert "another noise" in result.headline


@pytest.mark.parametrize("mode", ["hooks", "ghost", "one_backward"])
@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
def test_sensitivity_is_the_clip_in_every_mode(mode: str, clipping: str, tmp_path: Path) -> None:
    if mode == "ghost" and clipping != "flat":
        pytest.skip("ghost clipping knows flat clipping alone")
    federation = FEDERATION.replace(
        "max_grad_norm = 1.0",
        f'max_grad_norm = 1.0\ngradient_mode = "{mode}"\nclipping = "{clipping}"',
    ).replace("n_embd = 16", "n_embd = 16\ntied = false")
    result = outcome(
        MeasuredSensitivity, Mechanism(), made_up_subject(tmp_path, federation=federation)
    )
    assert result.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE)
    measure = result.measures[0]
    assert measure.value is not None
    assert measure.value <= 1.001
    # Per layer, one example reaches the clip only where all its layers do.
    if clipping != "per_layer":
        assert result.verdict is Verdict.PASS, result.headline


def test_a_language_model_is_measured_alike(tmp_path: Path) -> None:
    federation = FEDERATION.replace(
        'kind = "classification"\nlabels = ["calm", "storm"]', 'kind = "causal-lm"'
    ).replace("max_seq_len = 16", "max_seq_len = 16\ncausal = true")
    subject = made_up_subject(tmp_path, federation=federation)
    for test in (MeasuredNoise, MeasuredSensitivity):
        assert outcome(test, Mechanism(), subject).verdict is Verdict.PASS
    wrong = outcome(MeasuredSensitivity, breakage.clip_times(10.0), subject)
    assert wrong.verdict is Verdict.FAIL


def test_without_privacy_nothing_is_run_unless_it_is_claimed(tmp_path: Path) -> None:
    federation = FEDERATION.replace("noise_multiplier = 1.0", 'mode = "none"')
    subject = made_up_subject(tmp_path, federation=federation)
    claiming = with_spent(subject, "north", private=True, epsilon=3.0)
    for test in TESTS:
        assert isinstance(test(Mechanism()).run(subject, Budget(60)), NotRun)
        assert outcome(test, Mechanism(), claiming).verdict is Verdict.FAIL


def test_without_time_nothing_passes(subject: Subject) -> None:
    for test in TESTS:
        found = test(Mechanism()).run(subject, Budget(0))
        assert found.verdict is Verdict.INCONCLUSIVE
