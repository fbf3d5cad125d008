"""Intervals of sums of noised counts: they cover what they say, and shorter ones do not."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from audit.federated_counts import (
    FederatedCounts,
    SiteCounts,
    counts_for,
    counts_of,
    local_counts,
    shape_of,
)
from audit.noised_sums import noise_reach, noise_variance, sum_interval
from audit.subject import Subject
from core.audit_messages import AUDIT_FILE
from core.data.records import iterate
from core.errors import ScoreError, SubjectError
from core.record_counts import IntArray
from privacy.events import LaplaceCountsEvent
from privacy.noised_counts import noised_counts
from privacy.random_source import RandomStream
from tests.support.audited import simulated_subject

TRIALS = 2500


def sums(epsilon: float, numbers: int, sites: int) -> IntArray:
    """Noise in sums of so many numbers of each site, by the sampler that sites use."""
    event = LaplaceCountsEvent(2 / epsilon)
    zeros = np.zeros((TRIALS, numbers * sites), dtype=np.int64)
    noise = noised_counts(zeros, event, RandomStream(bytes([7]) * 32))
    added: IntArray = noise.sum(axis=1)
    return added


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize(("numbers", "sites"), [(1, 1), (8, 1), (4, 3)])
def test_intervals_cover_as_often_as_they_say(epsilon: float, numbers: int, sites: int) -> None:
    noise = sums(epsilon, numbers, sites)
    terms = {2 / epsilon: numbers * sites}
    interval = sum_interval(100, terms)
    covered = np.mean((interval.low <= 100 + noise) & (100 + noise <= interval.high))
    assert covered >= 0.935
    if numbers * sites > 1:  # of one, the quantile is a whole number, and may cover more
        assert covered <= 0.97
        forgotten = np.mean(np.abs(noise) <= noise_reach({2 / epsilon: 1}))
        assert forgotten < 0.9  # had the interval the noise of one number only


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0, 60.0])
def test_the_reach_of_one_noise_is_its_quantile(scale: float) -> None:
    q = np.exp(-1 / scale)
    for confidence in (0.5, 0.95, 0.999):
        reach = noise_reach({scale: 1}, confidence)
        inside = 1 - 2 * q ** (reach + 1) / (1 + q)
        before = 1 - 2 * q**reach / (1 + q) if reach else 0.0
        assert before < confidence <= inside + 1e-9


def test_wide_sums_are_nearly_normal() -> None:
    terms = {4.0: 300, 8.0: 200}
    deviation = np.sqrt(sum(n * noise_variance(scale) for scale, n in terms.items()))
    assert noise_reach(terms) == pytest.approx(stats.norm.ppf(0.975) * deviation, rel=0.01)


def test_the_variance_is_that_of_the_noise() -> None:
    noise = noised_counts(
        np.zeros(60_000, dtype=np.int64), LaplaceCountsEvent(3.0), RandomStream(bytes(32))
    )
    assert noise_variance(3.0) == pytest.approx(noise.var(), rel=0.04)
    assert noise_variance(3.0 * 1.1) != pytest.approx(noise.var(), rel=0.04)
    assert noise_variance(None) == 0.0


def test_exact_sums_have_no_width() -> None:
    assert sum_interval(5, {}).low == sum_interval(5, {}).high == 5.0


def test_what_cannot_be_computed_is_refused() -> None:
    for terms in ({0.0: 1}, {-1.0: 2}, {1.0: -1}):
        with pytest.raises(ScoreError):
            noise_reach(terms)
    with pytest.raises(ScoreError, match="narrower"):
        noise_reach({1e8: 3})


# Counts of a subject


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return simulated_subject(tmp_path_factory.mktemp("audited"))


def test_local_counts_count_every_record(subject: Subject) -> None:
    counts = local_counts(subject)
    assert [site.site for site in counts.sites] == ["north", "south", "west"]
    assert counts.exact
    assert counts.noise_variance == 0.0
    for site in counts.sites:
        there = subject.sites[site.site]
        assert site.histogram.sum(axis=1).tolist() == [len(there.members), len(there.held_out)]
        for side, records in enumerate((there.members, there.held_out)):
            for place, sex in enumerate(("female", "male")):
                for number, label in enumerate(subject.config.task.labels):
                    expected = sum(
                        record.groups["sex"] == sex and record.label == label
                        for record in iterate(records)
                    )
                    assert site.cells[side, place, number].sum() == expected
    found = counts_of(subject)
    assert isinstance(found, FederatedCounts)
    assert (found.cells == counts.cells).all()


def test_sums_know_how_many_noises_are_in_them(subject: Subject) -> None:
    shape = shape_of(subject)
    cells, bins = (np.zeros(each, dtype=np.int64) for each in (shape.cells, shape.histogram))
    scales = {"a": 4.0, "b": None, "c": 4.0, "d": 2.0}
    sites = tuple(SiteCounts(name, cells, bins, scale) for name, scale in scales.items())
    counts = FederatedCounts(shape.attributes, shape.labels, shape.edges, sites)
    assert counts.terms(3) == {4.0: 6, 2.0: 3}
    assert counts.noise_variance == pytest.approx(2 * noise_variance(4.0) + noise_variance(2.0))


def test_a_run_without_an_audit_file_has_no_counts(subject: Subject) -> None:
    assert counts_for(subject) is None


def test_counts_that_are_no_document_are_refused(subject: Subject, tmp_path: Path) -> None:
    path = subject.folder / AUDIT_FILE
    path.write_text("{}")
    try:
        with pytest.raises(SubjectError, match="something else"):
            counts_for(subject)
    finally:
        path.unlink()
