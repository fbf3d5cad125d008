"""Each epsilon against a published or measured figure and a second accountant."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant, privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import privacy.accounting as accounting
from core.errors import AccountingError, BudgetExceededError, PrivacyError
from privacy.accountants import (
    PLD_INTERVAL,
    Segments,
    merge,
    pld_epsilon,
    prv_epsilon,
    rdp_epsilon,
)
from privacy.accounting import epsilon_report, gate, life_epsilon, uncut_batch_size
from privacy.events import (
    DistributedDpSgdEvent,
    DpSgdEvent,
    Event,
    LaplaceCountsEvent,
    NonPrivateEvent,
)

ROOT = Path(__file__).parents[3]


def steps_of(
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    *,
    max_examples: int = 50_000,
    max_batch_size: int | None = None,
) -> DpSgdEvent:
    """Batches are cut where they never are, unless a test says so."""
    return DpSgdEvent(
        noise_multiplier=noise_multiplier,
        sample_rate=sample_rate,
        max_batch_size=max_examples if max_batch_size is None else max_batch_size,
        max_examples=max_examples,
        steps=steps,
        max_grad_norm=1.0,
    )


SST2 = 67_349  # records, as in Li et al. 2022
# Event, delta and the figures of PLD, PRV and RDP, measured with dp-accounting 0.6 and opacus 1.6.
FIGURES = {
    "SST-2, batch 1000, 3 epochs": (
        steps_of(0.8, 1000 / SST2, 202, max_examples=SST2, max_batch_size=2000),
        1 / (2 * SST2),
        (2.600, 2.610, 3.226),
    ),
    "1000 records, batch 32, 20 epochs": (
        steps_of(1.0, 0.032, 625, max_examples=1000, max_batch_size=64),
        1e-4,
        (4.391, 4.401, 4.952),
    ),
    "q .01, 10,000 steps": (steps_of(1.0, 0.01, 10_000), 1e-6, (6.911, 6.918, 7.414)),
    "one step": (steps_of(1.0, 0.01, 1), 1e-5, (0.199, 0.210, 0.956)),
    "no sampling": (steps_of(10.0, 1.0, 100), 1e-5, (4.377, 4.387, 4.729)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_three_accountants_agree_with_the_figures(name: str) -> None:
    event, delta, (pld, prv, rdp) = FIGURES[name]
    report = epsilon_report([event], delta)
    assert report.epsilon == pytest.approx(pld, abs=5e-3)
    assert report.prv == pytest.approx(prv, abs=5e-3)
    # Ours takes integer orders only, so it may be a little above.
    assert report.rdp is not None
    assert rdp - 5e-3 <= report.rdp <= 1.02 * rdp
    assert report.alarm is None
    assert report.private
    assert report.delta == delta
    assert report.neighbouring == "add_or_remove_one"


@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_reject_a_wrong_setting(name: str) -> None:
    event, delta, (pld, _, _) = FIGURES[name]
    wrong = [
        replace(event, sample_rate=min(1.0, event.sample_rate * 2), steps=event.steps + 1),
        replace(event, sample_rate=event.sample_rate / 2),
        replace(event, steps=event.steps * 2),
        replace(event, noise_multiplier=event.noise_multiplier * 1.05),
    ]
    if event.steps > 1:
        wrong.append(replace(event, steps=event.steps // 2))
    for other in wrong:
        assert abs(epsilon_report([other], delta).epsilon - pld) > 5e-3


@pytest.mark.parametrize(
    ("num_rounds", "figure"), [(1, 1.53), (10, 3.66), (50, 8.37), (100, 12.47)]
)
def test_rounds_compose(num_rounds: int, figure: float) -> None:
    events = [steps_of(1.0, 0.032, 31, max_examples=1000)] * num_rounds
    assert epsilon_report(events, 1e-5).epsilon == pytest.approx(figure, abs=1e-2)


def test_one_gaussian_release_has_its_closed_form() -> None:
    """Balle and Wang 2018, theorem 8, for sensitivity 1."""
    for noise_multiplier in (0.5, 1.0, 4.0):
        epsilon = epsilon_report([steps_of(noise_multiplier, 1.0, 1)], 1e-5).epsilon
        half, ratio = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
        exact = stats.norm.cdf(half - ratio) - math.exp(epsilon) * stats.norm.cdf(-half - ratio)
        assert exact == pytest.approx(1e-5, rel=5e-3)


def test_nothing_costs_exactly_nothing() -> None:
    report = epsilon_report([], 1e-5)
    assert (report.epsilon, report.rdp, report.prv) == (0.0, 0.0, None)
    assert report.private
    assert report.alarm is None


def test_figures_are_plain_numbers() -> None:
    report = epsilon_report([steps_of(1.0, 0.01, 1)], np.float64(1e-5))
    assert [type(report.epsilon), type(report.rdp), type(report.prv)] == [float] * 3


@pytest.mark.parametrize(
    "event", [NonPrivateEvent("no-privacy"), NonPrivateEvent("test-noise", steps_of(1.0, 0.01, 1))]
)
def test_one_event_without_privacy_makes_all_unbounded(event: NonPrivateEvent) -> None:
    report = epsilon_report([steps_of(1.0, 0.01, 1), event], 1e-5)
    assert math.isinf(report.epsilon)
    assert (report.rdp, report.prv, report.private) == (None, None, False)


def test_what_does_not_matter_to_epsilon_is_merged() -> None:
    one, two = steps_of(1.0, 0.01, 3), steps_of(1.1, 0.01, 3)
    counts = LaplaceCountsEvent(5.0)
    merged = merge([one, counts, two, replace(one, steps=4, max_grad_norm=2.0), counts])
    assert [segment.steps for segment in merged.gaussian] == [7, 3]
    assert merged.laplace == ((5.0, 2),)
    assert merge([two, one]) == merge([one, two])


def test_merge_refuses_what_is_not_private() -> None:
    with pytest.raises(PrivacyError, match="expected private events, got NonPrivateEvent"):
        merge([NonPrivateEvent("no-privacy")])


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        (1 / 50_000, r"expected delta < 1/N = 2e-05 for up to 50000 records, got 2e-05\nhint"),
        (0.5, "expected delta < 1/N"),
        (0.0, "expected delta between 0 and 1, got 0.0"),
        (1.0, "expected delta between 0 and 1, got 1.0"),
        (math.nan, "expected delta between 0 and 1, got nan"),
        ("1e-5", "expected delta between 0 and 1, got '1e-5'"),
    ],
)
def test_delta_must_be_below_one_over_the_records(delta: float, message: str) -> None:
    event = steps_of(1.0, 0.01, 1)
    with pytest.raises(PrivacyError, match=message):
        epsilon_report([event], delta)
    with pytest.raises(PrivacyError, match=message):
        gate([], event, 100.0, delta)


# Batches that are cut


def google(event: DpSgdEvent, delta: float, *, dataset_size: int) -> float:
    """dp_accounting's own analysis, for one exact number of records."""
    accountant = PLDAccountant(value_discretization_interval=PLD_INTERVAL)
    truncated = dp_accounting.TruncatedSubsampledGaussianDpEvent(
        dataset_size, event.sample_rate, event.max_batch_size, event.noise_multiplier
    )
    accountant.compose(truncated, event.steps)
    return float(accountant.get_epsilon(delta))


def test_a_cap_at_twice_the_expected_batch_costs_nothing() -> None:
    capped = steps_of(1.0, 0.01, 1000, max_examples=10_000, max_batch_size=200)
    plain = replace(capped, max_batch_size=10_000)
    cost = epsilon_report([capped], 1e-5).epsilon - epsilon_report([plain], 1e-5).epsilon
    assert 0 <= cost < 1e-3


def test_a_tight_cap_costs_and_agrees_with_google() -> None:
    event = steps_of(1.0, 0.05, 50, max_examples=400, max_batch_size=24)
    plain = epsilon_report([replace(event, max_batch_size=400)], 1e-5).epsilon
    ours, theirs = epsilon_report([event], 1e-5).epsilon, google(event, 1e-5, dataset_size=400)
    assert ours > plain + 1
    assert theirs <= ours + 1e-9
    # It counts a record as present in a full batch as often as in any other.
    assert ours == pytest.approx(theirs, rel=0.1)


def test_a_cap_at_twice_a_small_batch_agrees_with_google() -> None:
    event = steps_of(1.0, 0.05, 50, max_examples=400, max_batch_size=40)
    theirs = google(event, 1e-5, dataset_size=400)
    assert 0 <= epsilon_report([event], 1e-5).epsilon - theirs < 5e-3


def test_the_bound_covers_every_smaller_data_set() -> None:
    event = steps_of(1.0, 0.01, 20, max_examples=5000, max_batch_size=10)
    bound = epsilon_report([event], 1e-5).epsilon
    exact = [google(event, 1e-5, dataset_size=size) for size in (5000, 2000, 1000, 500, 100)]
    assert max(exact) <= bound + 1e-9
    # Why it is needed: the analysis at the largest size alone would claim too little.
    assert exact[0] < max(exact) - 0.5


def test_the_bound_grows_with_the_records() -> None:
    sizes = [50, 200, 500, 1000, 5000]
    events = [steps_of(1.0, 0.02, 10, max_examples=size, max_batch_size=20) for size in sizes]
    epsilons = [epsilon_report([event], 1e-5).epsilon for event in events]
    assert epsilons == sorted(epsilons)
    assert epsilons[0] < epsilons[-1]


def test_a_rarely_full_batch_takes_its_chance_from_delta() -> None:
    event = steps_of(1.0, 0.01, 10, max_examples=10_000, max_batch_size=160)
    lost = 10 * float(stats.binom.sf(159, 9999, 0.01))
    assert 1e-7 < lost < 2e-7
    expected = pld_epsilon(merge([event]), 9e-5 - lost, truncated=False)
    assert epsilon_report([event], 9e-5).epsilon == expected
    assert expected > pld_epsilon(merge([event]), 9e-5, truncated=False)


# Counts


@pytest.mark.parametrize(("scale", "count"), [(0.5, 1), (1.0, 10), (3.0, 100), (100.0, 50)])
def test_counts_cost_what_randomised_response_costs(scale: float, count: int) -> None:
    """Kairouz, Oh, Viswanath 2015: summed over the number of answers that were kept."""
    report = epsilon_report([LaplaceCountsEvent(scale)] * count, 1e-5)
    kept = np.arange(count + 1)
    chances = stats.binom.pmf(kept, count, 1 / (1 + math.exp(-1 / scale)))
    losses = (2 * kept - count) / scale
    delta = float(np.sum(chances * np.clip(-np.expm1(report.epsilon - losses), 0, None)))
    assert delta <= 1e-5 * (1 + 1e-6)
    less = 0.99 * report.epsilon - 1e-3
    closer = float(np.sum(chances * np.clip(-np.expm1(less - losses), 0, None)))
    assert closer > 1e-5
    assert report.epsilon <= count / scale + 1e-3
    assert report.rdp is not None
    assert report.epsilon <= report.rdp + accounting.RDP_SLACK
    assert report.alarm is None


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_counts_cover_continuous_noise_too(scale: float) -> None:
    continuous = privacy_loss_distribution.from_laplace_mechanism(
        scale, value_discretization_interval=1e-4
    ).self_compose(20)
    bound = epsilon_report([LaplaceCountsEvent(scale)] * 20, 1e-5).epsilon
    assert continuous.get_epsilon_for_delta(1e-5) <= bound
    # The other way round it would not be a bound.
    assert bound > continuous.get_epsilon_for_delta(1e-5) + 0.01


def test_counts_and_steps_add_up() -> None:
    steps, counts = steps_of(1.0, 0.01, 500), LaplaceCountsEvent(2.0)
    both = epsilon_report([steps, counts], 1e-5)
    parts = [epsilon_report([event], 1e-5).epsilon for event in (steps, counts)]
    assert max(parts) < both.epsilon <= sum(parts) + 1e-3
    # PRV knows Gaussian steps only, so it speaks of those.
    assert both.prv == epsilon_report([steps], 1e-5).prv
    assert both.alarm is None


# What disagrees, and what fails


def test_small_losses_are_not_rounded_up_to_the_interval() -> None:
    """A million steps at sigma 10: the table at 1e-3 says 1.06."""
    event = steps_of(10.0, 0.001, 200_000, max_examples=90_000)
    report = epsilon_report([event], 1e-5)
    assert report.alarm is None
    assert report.prv == pytest.approx(report.epsilon, abs=0.02)


def test_an_alarm_names_accountants_that_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "prv_epsilon", lambda *_: 0.5)
    report = epsilon_report([steps_of(1.0, 0.01, 1)], 1e-5)
    assert report.alarm == "PLD gives epsilon 0.199 for the DP-SGD steps, PRV 0.500"
    assert report.prv == 0.5


def test_no_alarm_below_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "prv_epsilon", lambda *_: 0.199 + 0.049)
    assert epsilon_report([steps_of(1.0, 0.01, 1)], 1e-5).alarm is None


def test_an_alarm_where_pld_passes_the_upper_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "rdp_epsilon", lambda *_: 0.1)
    report = epsilon_report([steps_of(1.0, 0.01, 1)], 1e-5)
    assert report.alarm == "PLD gives epsilon 0.199, above RDP's upper bound 0.100"


def test_a_missing_second_opinion_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> float:
        raise AccountingError("no")

    monkeypatch.setattr(accounting, "prv_epsilon", fails)
    report = epsilon_report([steps_of(1.0, 0.01, 1)], 1e-5)
    assert (report.prv, report.alarm) == (None, "no second opinion: no")


def test_a_second_opinion_that_would_fill_the_memory_is_not_asked_for() -> None:
    report = epsilon_report([steps_of(0.3, 0.5, 1000)], 1e-5)
    assert report.prv is None
    assert report.alarm is not None
    assert report.alarm.startswith("no second opinion: PRV does not fit in memory at epsilon")


def test_prv_has_no_epsilon_for_no_step() -> None:
    with pytest.raises(AccountingError, match="expected a step for the PRV accountant, got none"):
        prv_epsilon((), 1e-5)


def breaks(*_: object, **__: object) -> Any:
    raise MemoryError("no room")


FAILING: dict[str, Callable[[Segments], float]] = {
    "RDP": lambda segments: rdp_epsilon(segments, 1e-5),
    "PLD": lambda segments: pld_epsilon(segments, 1e-5, truncated=False),
    "PRV": lambda segments: prv_epsilon(segments.gaussian, 1e-5),
}


@pytest.mark.parametrize("accountant", FAILING)
def test_a_failing_accountant_is_a_named_error(
    accountant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privacy.accountants.compute_rdp", breaks)
    monkeypatch.setattr("privacy.accountants.privacy_loss_distribution.identity", breaks)
    monkeypatch.setattr("privacy.accountants.PRVAccountant.get_epsilon", breaks)
    message = f"expected an epsilon from the {accountant} accountant, got MemoryError: no room"
    segments = merge([steps_of(1.2345, 0.01, 77)])
    with pytest.raises(AccountingError, match=message):
        FAILING[accountant](segments)


def test_a_number_that_is_none_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privacy.accountants.PRVAccountant.get_epsilon", lambda *_: math.nan)
    gaussian = merge([steps_of(1.2346, 0.01, 77)]).gaussian
    with pytest.raises(AccountingError, match=r"expected an epsilon from the PRV .* got nan"):
        prv_epsilon(gaussian, 1e-5)


# The gate


class Calls:
    """Counts the calls of PLD, the slow accountant."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        monkeypatch.setattr(accounting, "pld_epsilon", self)

    def __call__(self, segments: Segments, delta: float, *, truncated: bool) -> float:
        self.count += 1
        return pld_epsilon(segments, delta, truncated=truncated)


ROUND = steps_of(1.0, 0.01, 100)


def test_the_gate_asks_only_rdp_far_below_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    for num_rounds in range(5):
        gate([ROUND] * num_rounds, ROUND, 8.0, 1e-5)
    assert calls.count == 0


def test_the_gate_asks_pld_near_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    tight = epsilon_report([ROUND] * 2, 1e-5)
    assert tight.rdp is not None
    assert tight.epsilon + 0.05 < tight.rdp
    calls.count = 0
    gate([ROUND], ROUND, tight.epsilon + 0.01, 1e-5)
    assert calls.count == 1


def test_the_gate_asks_pld_where_batches_are_often_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """There RDP of plain Poisson sampling is no bound at all."""
    event = steps_of(1.0, 0.05, 50, max_examples=400, max_batch_size=24)
    report = epsilon_report([event], 1e-5)
    assert report.rdp is not None
    assert report.rdp + 1 < report.epsilon
    calls = Calls(monkeypatch)
    with pytest.raises(BudgetExceededError):
        gate([], event, report.rdp + 0.5, 1e-5)
    assert calls.count > 0


def test_the_gate_refuses_exactly_past_the_cap() -> None:
    after = epsilon_report([ROUND] * 3, 1e-5).epsilon
    gate([ROUND] * 2, ROUND, after, 1e-5)
    gate([ROUND] * 2, ROUND, math.nextafter(after, math.inf), 1e-5)
    with pytest.raises(BudgetExceededError):
        gate([ROUND] * 2, ROUND, math.nextafter(after, 0), 1e-5)


def test_the_refusal_names_before_after_and_cap() -> None:
    before, after = (epsilon_report([ROUND] * n, 1e-5).epsilon for n in (1, 2))
    with pytest.raises(BudgetExceededError) as caught:
        gate([ROUND], ROUND, 0.5, 1e-5)
    assert caught.value.message == (
        "expected an epsilon of at most 0.5 (delta 1e-05) over the site's whole life, "
        f"got {after:.4g} with this task, {before:.4g} before it"
    )
    assert "more noise or fewer steps" in caught.value.hint


@pytest.mark.parametrize(
    ("events", "proposed"),
    [([], NonPrivateEvent("no-privacy")), ([NonPrivateEvent("test-noise")], ROUND)],
)
def test_no_cap_lets_an_unbounded_epsilon_through(events: list[Event], proposed: Event) -> None:
    with pytest.raises(BudgetExceededError, match="got inf with this task"):
        gate(events, proposed, 1e300, 1e-5)


@pytest.mark.parametrize("cap", [0.0, -1.0, math.inf, math.nan])
def test_a_cap_is_a_number(cap: float) -> None:
    with pytest.raises(PrivacyError, match="expected a finite cap on epsilon above 0, got"):
        gate([], ROUND, cap, 1e-5)


def test_the_gate_stays_shut_when_an_accountant_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privacy.accountants.compute_rdp", breaks)
    with pytest.raises(AccountingError, match="from the RDP accountant, got MemoryError"):
        gate([], steps_of(1.2347, 0.01, 1), 100.0, 1e-5)


def test_no_accountant_that_underestimates_is_in_our_code() -> None:
    """A central limit claims 1.63 where the steps cost 2.60."""
    forbidden = re.compile(r"GaussianAccountant|\bgdp\b", re.IGNORECASE)
    packages = ["cli", "coordinator", "client", "audit", "privacy", "core"]
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    assert ROOT / "privacy" / "accountants.py" in files
    assert [str(path) for path in files if forbidden.search(path.read_text("utf-8"))] == []


# Steps over all sites


def shared(event: DpSgdEvent, distance: float = 1e-24) -> list[Event]:
    """The same steps, one by one, with noise that several sites share."""
    one = DistributedDpSgdEvent(
        noise_multiplier=event.noise_multiplier,
        sample_rate=event.sample_rate,
        max_batch_size=event.max_batch_size,
        max_examples=event.max_examples,
        max_grad_norm=event.max_grad_norm,
        colluding_sites=1,
        distance=distance,
    )
    return [one] * event.steps


@settings(max_examples=25, deadline=None)
@given(
    noise=st.sampled_from([0.6, 0.9, 1.5, 4.0]),
    rate=st.sampled_from([0.01, 0.1, 1.0]),
    steps=st.integers(1, 30),
    cap=st.sampled_from([30, 60, 1000]),
    distance=st.sampled_from([0.0, 1e-30, 1e-24, 1e-14, 1e-9]),
)
def test_shared_noise_is_never_cheaper_than_a_site_s_own(
    noise: float, rate: float, steps: int, cap: int, distance: float
) -> None:
    own = steps_of(noise, rate, steps, max_examples=1000, max_batch_size=cap)
    local = life_epsilon([own], 1e-4)
    try:
        both = life_epsilon(shared(own, distance), 1e-4)
    except AccountingError:
        assert (1 + math.exp(local)) * steps * distance > 1e-4 / 4  # what half of delta cannot pay
        return
    assert both >= local
    if distance <= 1e-24:
        assert both == pytest.approx(local, rel=1e-3)


def test_steps_of_both_kinds_are_merged_and_their_distance_is_added_up() -> None:
    own = steps_of(1.0, 0.01, 7)
    merged = merge([own, *shared(own, 1e-25)])
    assert [segment.steps for segment in merged.gaussian] == [14]
    assert merged.distance == pytest.approx(7e-25)
    assert merged.ideal == merge([replace(own, steps=14)])
    other = merge([own, *shared(replace(own, sample_rate=0.02), 0.0)])
    assert [segment.sample_rate for segment in other.gaussian] == [0.01, 0.02]


def test_the_distance_is_paid_from_delta() -> None:
    """By the smallest of three shares that pays (1 + exp(epsilon)) times it."""
    own = steps_of(1.0, 0.01, 100)
    plain = merge([own])
    for distance, share in ((1e-25, 2.0**-20), (1e-14, 2.0**-20), (1e-12, 2.0**-10), (1e-9, 0.5)):
        epsilon = life_epsilon(shared(own, distance), 1e-5)
        assert epsilon == pld_epsilon(plain, 1e-5 - share * 1e-5, truncated=False)
        cost = (1 + math.exp(epsilon)) * 100 * distance
        assert cost <= share * 1e-5
    assert life_epsilon(shared(own, 0.0), 1e-5) == life_epsilon([own], 1e-5)


def test_a_distance_that_no_delta_pays_is_no_epsilon() -> None:
    own = steps_of(1.0, 0.01, 100)
    with pytest.raises(AccountingError, match="near enough to a Gaussian mechanism's for delta"):
        life_epsilon(shared(own, 1e-6), 1e-5)
    with pytest.raises(AccountingError, match="near enough"):
        gate(shared(own, 1e-6)[1:], shared(own, 1e-6)[0], 50.0, 1e-5)
    with pytest.raises(AccountingError, match="near enough"):
        life_epsilon(shared(steps_of(0.2, 1.0, 40), 1e-24), 1e-5)  # exp(epsilon) is too large


def test_the_gate_looks_at_shared_noise_as_at_a_site_s_own() -> None:
    own = steps_of(1.0, 0.01, 100)
    events = shared(own)
    epsilon = life_epsilon(events, 1e-5)
    gate(events[1:], events[0], epsilon * 1.0001, 1e-5)
    with pytest.raises(BudgetExceededError):
        gate(events[1:], events[0], epsilon * 0.999, 1e-5)
    # Far below the cap RDP answers; not where it cannot tell what the distance costs.
    gate(events[1:], events[0], 50.0, 1e-5)


def test_delta_must_be_below_one_over_the_records_of_a_step_over_all_sites_too() -> None:
    with pytest.raises(PrivacyError, match="expected delta < 1/N = 2e-05 for up to 50000 records"):
        life_epsilon(shared(steps_of(1.0, 0.01, 1)), 2e-5)


def test_a_report_of_shared_noise_has_its_second_opinions() -> None:
    report = epsilon_report(shared(steps_of(1.0, 0.01, 50)), 1e-5)
    assert report.alarm is None
    assert report.prv == pytest.approx(report.epsilon, abs=0.02)
    assert report.private


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.9, 1.0])
@pytest.mark.parametrize("max_examples", [1, 30, 2000, 100_000])
def test_a_batch_is_cut_only_where_that_costs_a_thousandth_of_delta(
    rate: float, max_examples: int
) -> None:
    cap = uncut_batch_size(
        sample_rate=rate, steps=500, max_examples=max_examples, target_delta=1e-6
    )

    def cost(size: int) -> float:
        return 500 * float(stats.binom.sf(size - 1, max_examples - 1, rate))

    assert 1 <= cap <= max_examples
    assert cap == max_examples or cost(cap) <= 1e-9
    assert cap == 1 or cost(cap - 1) > 0.9e-9
