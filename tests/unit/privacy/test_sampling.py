"""Batches are Poisson samples of records, cut uniformly, as many as were accounted for."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from core.errors import PrivacyError
from privacy.random_source import RandomSource
from privacy.sampling import TruncatedPoissonSampler

Included = npt.NDArray[np.bool_]


def sampler(
    *, num_samples: int = 40, sample_rate: float = 0.2, cap: int = 1000, steps: int = 5000
) -> TruncatedPoissonSampler:
    return TruncatedPoissonSampler(
        num_samples=num_samples,
        sample_rate=sample_rate,
        max_batch_size=cap,
        steps=steps,
        stream=RandomSource.for_tests(bytes(32), "sampling").stream("sampling"),
    )


def included(one: TruncatedPoissonSampler) -> Included:
    """(steps, records): who was in which batch."""
    table = np.zeros((one.steps, one.num_samples), dtype=bool)
    batches = list(one)
    assert len(batches) == one.steps
    for row, batch in zip(table, batches, strict=True):
        assert len(set(batch)) == len(batch)
        row[batch] = True
    return table


def sizes_pvalue(sizes: npt.NDArray[np.int64], num_samples: int, probability: float) -> float:
    """Chi-square of batch sizes against Binomial(N, q), rare sizes together."""
    counts = np.bincount(sizes, minlength=num_samples + 1).astype(float)
    expected = stats.binom.pmf(np.arange(num_samples + 1), num_samples, probability) * len(sizes)
    usual = expected >= 10
    observed = [*counts[usual], counts[~usual].sum()]
    return float(
        stats.chisquare(
            observed, [*expected[usual], expected[~usual].sum()], sum_check=False
        ).pvalue
    )


def test_batch_sizes_are_binomial_with_this_rate_and_with_no_other() -> None:
    sizes = included(sampler()).sum(axis=1)
    assert sizes_pvalue(sizes, 40, 0.2) > 0.01
    for wrong in (0.19, 0.21):
        assert sizes_pvalue(sizes, 40, wrong) < 1e-4
    assert sizes.std() > 2  # a fixed size of N q would not pass as Poisson sampling


def test_every_record_is_included_as_often() -> None:
    counts = included(sampler()).sum(axis=0)
    spread = np.square(counts - 1000).sum() / (5000 * 0.2 * 0.8)
    assert 0.01 < stats.chi2.sf(spread, 40) < 0.99
    counts[7] += 150  # one record favoured by 3 points
    assert stats.chi2.sf(np.square(counts - 1000).sum() / 800, 40) < 0.01


def worst_correlation(left: Included, right: Included) -> float:
    """Largest of N x N correlations in units of its deviation."""
    table = np.corrcoef(left.T, right.T)[: left.shape[1], left.shape[1] :]
    return float(np.abs(table).max() * np.sqrt(len(left)))


def test_steps_and_records_are_independent() -> None:
    table = included(sampler())
    assert worst_correlation(table[1:], table[:-1]) < 4.5
    pairs = np.corrcoef(table.T)[np.triu_indices(40, 1)]
    assert np.abs(pairs).max() * np.sqrt(len(table)) < 4.5
    # a pass over shuffled data is told apart: whoever was in the last batch is not in this one
    rng = np.random.default_rng(0)
    shuffled = np.zeros((5000, 40), dtype=bool)
    for start in range(0, 5000, 5):
        for offset, part in enumerate(np.split(rng.permutation(40), 5)):
            shuffled[start + offset, part] = True
    assert worst_correlation(shuffled[1:], shuffled[:-1]) > 8


def test_empty_batches_come_as_often_as_they_should() -> None:
    batches = list(sampler(num_samples=5, sample_rate=0.1, steps=4000))
    empty = sum(not batch for batch in batches)
    assert len(batches) == 4000
    assert stats.binomtest(empty, 4000, 0.9**5).pvalue > 0.01


@pytest.mark.parametrize("steps", [1, 2, 17])
@pytest.mark.parametrize("num_samples", [1, 3, 100])
def test_exactly_so_many_batches_come_however_many_records_there_are(
    steps: int, num_samples: int
) -> None:
    one = sampler(num_samples=num_samples, sample_rate=1e-6, steps=steps)
    assert len(list(one)) == len(one) == steps


def test_a_rate_of_one_takes_everyone_every_time() -> None:
    assert list(sampler(num_samples=4, sample_rate=1.0, steps=3)) == [[0, 1, 2, 3]] * 3


def test_large_batches_are_cut_uniformly_and_small_ones_are_left() -> None:
    whole, cut = included(sampler()), included(sampler(cap=8))
    sizes = cut.sum(axis=1)
    assert sizes.max() == 8
    share = float((whole.sum(axis=1) > 8).mean())
    assert abs(share - stats.binom.sf(8, 40, 0.2)) < 0.02
    expected = np.minimum(np.arange(41), 8) @ stats.binom.pmf(np.arange(41), 40, 0.2) / 40
    counts = cut.sum(axis=0)
    assert stats.chisquare(counts).pvalue > 0.01
    assert abs(counts.mean() / 5000 - expected) < 0.002
    first = [sorted(batch)[:8] for batch in sampler()]  # to keep the first eight is not uniform
    unfair = np.bincount([record for batch in first for record in batch], minlength=40)
    assert stats.chisquare(unfair).pvalue < 1e-10


def test_a_cut_batch_is_a_subset_of_what_was_sampled() -> None:
    whole = next(iter(sampler(steps=1)))
    cut = next(iter(sampler(cap=2, steps=1)))
    assert set(cut) < set(whole)
    assert len(cut) == 2


def test_one_record_more_leaves_rate_and_steps_alone() -> None:
    one, more = sampler(num_samples=1007), sampler(num_samples=1008)
    assert (one.sample_rate, one.steps) == (more.sample_rate, more.steps)


def test_torchs_seed_has_no_influence() -> None:
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        drawn.append(list(sampler(steps=20)))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("sizes", [{"num_samples": 0}, {"cap": 0}, {"steps": 0}])
def test_sizes_below_one_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(PrivacyError, match="records, steps and batch size of 1 or more, got"):
        sampler(**sizes)


@pytest.mark.parametrize("rate", [0.0, 1.5, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(PrivacyError, match="expected a probability"):
        list(sampler(sample_rate=rate, steps=2))
