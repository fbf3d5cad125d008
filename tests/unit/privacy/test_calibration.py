"""The noise for a target is the smallest that reaches it, and the target is reached."""

import math

import pytest

from core.errors import AccountingError, PrivacyError
from privacy.accounting import calibrate_noise_multiplier, epsilon_report
from privacy.events import MIN_NOISE_MULTIPLIER, DpSgdEvent

# Target epsilon and delta, sampling rate, steps, largest batch, largest data set.
Setting = tuple[float, float, float, int, int, int]

SETTINGS: dict[str, Setting] = {
    "SST-2": (2.600, 1 / (2 * 67_349), 1000 / 67_349, 202, 2000, 67_349),
    "no sampling": (1.0, 1e-6, 1.0, 100, 1000, 1000),
    "batches that are sometimes cut": (8.0, 1e-4, 16 / 300, 60, 36, 375),
    "one step": (0.1, 1e-5, 0.01, 1, 2000, 50_000),
}


def cost(noise_multiplier: float, setting: Setting) -> float:
    _, delta, sample_rate, steps, max_batch_size, max_examples = setting
    event = DpSgdEvent(noise_multiplier, sample_rate, max_batch_size, max_examples, steps, 1.0)
    return epsilon_report([event], delta).epsilon


@pytest.mark.parametrize("name", SETTINGS)
def test_the_noise_is_the_smallest_that_reaches_the_target(name: str) -> None:
    setting = SETTINGS[name]
    noise_multiplier = calibrate_noise_multiplier(*setting)
    assert cost(noise_multiplier, setting) <= setting[0]
    assert cost(noise_multiplier * (1 - 1.01e-3), setting) > setting[0]
    assert float(f"{noise_multiplier:.4g}") == noise_multiplier


def test_the_measured_figure_comes_back() -> None:
    assert calibrate_noise_multiplier(*SETTINGS["SST-2"]) == pytest.approx(0.8, abs=2e-3)


def test_no_sampling_has_its_closed_form() -> None:
    """100 steps at sigma are one step at sigma / 10: 4.377 at sigma 10."""
    found = calibrate_noise_multiplier(4.377, 1e-5, 1.0, 100, 1000, 1000)
    assert found == pytest.approx(10.0, rel=2e-3)


def test_wrong_settings_are_told_apart() -> None:
    target, delta, sample_rate, steps, batch, examples = SETTINGS["SST-2"]
    doubled = calibrate_noise_multiplier(target, delta, 2 * sample_rate, steps, batch * 2, examples)
    halved = calibrate_noise_multiplier(target, delta, sample_rate, steps // 2, batch, examples)
    assert doubled > 0.9
    assert halved < 0.77


def test_noise_falls_with_the_target() -> None:
    found = [
        calibrate_noise_multiplier(epsilon, 1e-5, 0.01, 300, 2000, 50_000)
        for epsilon in (0.5, 1.0, 2.0, 4.0, 8.0)
    ]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(found)


def test_no_target_is_worth_less_than_the_least_noise() -> None:
    found = calibrate_noise_multiplier(1e4, 1e-5, 1.0, 1, 200, 200)
    assert found == MIN_NOISE_MULTIPLIER


def test_a_target_out_of_reach_says_what_to_do() -> None:
    message = (
        r"expected a noise multiplier up to 100000 that costs epsilon 0\.0001 over 100000 steps "
        r"at sampling rate 1, got none\nhint: raise target_epsilon, or take fewer rounds"
    )
    with pytest.raises(AccountingError, match=message):
        calibrate_noise_multiplier(1e-4, 1e-9, 1.0, 100_000, 1000, 1000)


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_a_target_is_a_number(target: float) -> None:
    with pytest.raises(PrivacyError, match="expected target_epsilon above 0, got"):
        calibrate_noise_multiplier(target, 1e-5, 0.01, 10, 200, 1000)


def test_delta_must_be_below_one_over_the_records() -> None:
    with pytest.raises(PrivacyError, match=r"expected delta < 1/N = 0\.001 for up to 1000"):
        calibrate_noise_multiplier(1.0, 1e-3, 0.01, 10, 200, 1000)


def test_arguments_are_those_of_the_event() -> None:
    with pytest.raises(PrivacyError, match="expected sample_rate between"):
        calibrate_noise_multiplier(1.0, 1e-5, 1.5, 10, 200, 1000)
