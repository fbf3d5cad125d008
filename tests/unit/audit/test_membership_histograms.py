"""Membership from noised histograms: coverage, leaks, and refusals."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from audit.federated_counts import FederatedCounts, SiteCounts
from audit.intervals import delong
from audit.membership.direct import WithoutReferences
from audit.membership.histograms import histogram_auc
from audit.verdicts import Budget, NotRun, Verdict
from tests.support.membership import config_with, subject_with

EDGES = np.linspace(0, 4, 25)


def losses(rng, count, shift=0.0):
    return np.clip(rng.gamma(2.0, 0.6, count) + shift, 0, 3.99)


def counts_of(rng, members, others, *, scale=None, site="north") -> SiteCounts:
    rows = np.stack([np.histogram(side, EDGES)[0] for side in (members, others)])
    if scale is not None:
        q = math.exp(-1 / scale)
        noise = rng.geometric(1 - q, rows.shape) - rng.geometric(1 - q, rows.shape)
        rows = rows + noise
    return SiteCounts(site, np.zeros((2, 2, 2), dtype=np.int64), rows.astype(np.int64), scale)


def subject_of(*sites: SiteCounts, epsilon=None, holdout=0.3):
    sizes = {site.site: 400 for site in sites}
    config = config_with(
        "classification", sizes, epsilon=epsilon, audit={"holdout_fraction": holdout}
    )
    counts = FederatedCounts((), ("calm", "storm"), tuple(EDGES), sites)
    return subject_with(config, dict.fromkeys(sizes), federated=counts)


def test_exact_histograms_give_delong_s_estimate_of_the_binned_losses():
    rng = np.random.default_rng(1)
    members, others = losses(rng, 300), losses(rng, 120, 0.3)
    found = histogram_auc(counts_of(rng, members, others))
    binned = [-np.digitize(side, EDGES).astype(np.float64) for side in (members, others)]
    expected = delong(*binned)
    assert found.auc == pytest.approx(expected.auc)
    assert found.deviation == pytest.approx(math.sqrt(expected.variance), rel=0.01)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("runs", [300, pytest.param(3000, marks=pytest.mark.soak)])
def test_an_interval_from_noised_counts_covers_and_forgetting_the_noise_does_not(epsilon, runs):
    rng = np.random.default_rng(2)
    large = [np.digitize(losses(rng, 200_000, shift), EDGES) for shift in (0.0, 0.25)]
    truth = delong(-large[0].astype(np.float64), -large[1].astype(np.float64)).auc
    covers = forgetful = 0
    for _ in range(runs):
        noised = counts_of(rng, losses(rng, 350), losses(rng, 150, 0.25), scale=1 / epsilon)
        interval = histogram_auc(noised).interval(0.95)
        covers += interval.low <= truth <= interval.high
        exact = SiteCounts("north", noised.cells, noised.histogram, None)
        blind = histogram_auc(exact).interval(0.95)
        forgetful += blind.low <= truth <= blind.high
    slack = 3 * math.sqrt(0.05 * 0.95 / runs)
    assert 0.95 - slack <= covers / runs
    if epsilon == 0.5:
        assert forgetful < covers


@pytest.mark.parametrize("runs", [300, pytest.param(3000, marks=pytest.mark.soak)])
def test_false_alarms_stay_below_5_percent_under_noise(runs):
    rng = np.random.default_rng(3)
    p_values = [
        histogram_auc(counts_of(rng, losses(rng, 350), losses(rng, 150), scale=2.0)).p_value
        for _ in range(runs)
    ]
    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert np.mean(np.array(p_values) <= 0.05) <= limit
    leak = [
        histogram_auc(counts_of(rng, losses(rng, 350), losses(rng, 150, 0.5), scale=2.0)).p_value
        for _ in range(50)
    ]
    assert np.mean(np.array(leak) <= 0.05) >= 0.9


def test_a_leak_shows_in_what_the_sites_said_and_names_the_site():
    rng = np.random.default_rng(4)
    subject = subject_of(
        counts_of(rng, losses(rng, 300), losses(rng, 100), scale=1.0, site="east"),
        counts_of(rng, losses(rng, 300), losses(rng, 100, 2.0), scale=1.0, site="north"),
    )
    result = WithoutReferences().run(subject, Budget(60))
    assert result.verdict is Verdict.FAIL
    rows = {row[0]: row for row in result.tables[0].rows}
    assert rows["north"][1] > 0.8
    assert rows["north"][4] < 0.05 < rows["east"][4]
    assert "neither a control model" in result.notes[0]


def test_many_losses_that_tell_nothing_pass_and_few_do_not():
    rng = np.random.default_rng(5)
    many = counts_of(rng, losses(rng, 3000), losses(rng, 1500), scale=2.0)
    result = WithoutReferences().run(subject_of(many, epsilon=3.0), Budget(60))
    assert result.verdict is Verdict.PASS
    (measure,) = result.measures
    assert measure.name == "membership-auc"
    assert measure.limit == pytest.approx(norm.cdf(0) + 0.4526, abs=1e-3)
    few = counts_of(rng, losses(rng, 150), losses(rng, 100), scale=2.0)
    result = WithoutReferences().run(subject_of(few), Budget(60))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.smallest_effect.value > 0.6


def test_counts_that_may_be_nothing_but_noise_are_not_divided_by():
    rng = np.random.default_rng(6)
    empty = counts_of(rng, [], [], scale=4.0)
    assert histogram_auc(empty) is None
    outcome = WithoutReferences().run(subject_of(empty), Budget(60))
    assert isinstance(outcome, NotRun)
    assert "too few records for the noise" in outcome.reason


def test_losses_that_are_all_alike_tell_nothing():
    rng = np.random.default_rng(7)
    assert histogram_auc(counts_of(rng, np.full(300, 0.7), np.full(100, 0.7))) is None
