"""Partition: every record at one site, persons together, skew as asked."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.clinic import CLINIC_LABELS, clinic_source
from core.data.partition import partition
from core.data.records import Record, iterate
from core.errors import DataError

CLINIC = clinic_source("lakeside", 0)


def records(count, **fields):
    return tuple(
        Record(f"note {n}", **{name: value(n) for name, value in fields.items()})
        for n in range(count)
    )


def positions(sites):
    return [list(site.indices) for site in sites]


def check_cut(source, sites):
    """Every record at one site, in order, and no site empty."""
    assert sorted(itertools.chain(*positions(sites))) == list(range(len(source)))
    assert all(len(site) for site in sites)
    assert all(list(site.indices) == sorted(site.indices) for site in sites)


PERSONS = st.lists(st.integers(0, 8), min_size=9, max_size=60)


@given(PERSONS, st.integers(1, 4), st.sampled_from(["iid", "dirichlet"]), st.integers(0, 5))
def test_every_record_is_at_one_site_and_every_person_too(persons, num_sites, scheme, seed):
    source = tuple(Record("x", str(n % 3), f"p{person}") for n, person in enumerate(persons))
    if len(set(persons)) < num_sites:
        with pytest.raises(DataError, match=f"expected at least {num_sites} persons"):
            partition(source, num_sites, scheme, seed=seed)
        return
    sites = partition(source, num_sites, scheme, seed=seed)
    check_cut(source, sites)
    at = [{record.person for record in iterate(site)} for site in sites]
    assert sum(map(len, at)) == len(set(persons))


def test_iid_without_persons_differs_by_one_record_at_most():
    source = records(103)
    sites = partition(source, 4, "iid", seed=1)
    check_cut(source, sites)
    assert sorted(map(len, sites)) == [25, 26, 26, 26]
    assert positions(sites)[0] != list(range(0, 103, 4))


def test_iid_with_persons_is_balanced_and_mixed():
    sites = partition(CLINIC, 3, "iid", seed=1)
    assert max(map(len, sites)) - min(map(len, sites)) <= 3
    whole = Counter(record.label for record in CLINIC)
    for site in sites:
        counts = Counter(record.label for record in iterate(site))
        assert all(abs(counts[label] / 400 - whole[label] / 1200) < 0.08 for label in CLINIC_LABELS)


def skew(alpha):
    """How far the label mix of the sites is from that of the whole: 0 to 1."""
    sites = partition(CLINIC, 4, "dirichlet", alpha=alpha, seed=0)
    check_cut(CLINIC, sites)
    counts = np.array(
        [[sum(r.label == x for r in iterate(site)) for x in CLINIC_LABELS] for site in sites]
    )
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    return np.abs(counts - expected).sum() / (2 * counts.sum())


def test_a_smaller_alpha_is_more_skewed():
    assert skew(1000) < 0.05 < 0.1 < skew(0.5) < skew(0.01)


@pytest.mark.parametrize("alpha", [1e-300, 1e-3, 1e300])
def test_no_site_is_empty_at_any_alpha(alpha):
    source = records(40, label=lambda n: str(n % 2))
    check_cut(source, partition(source, 10, "dirichlet", alpha=alpha))


def test_a_column_goes_whole_to_the_lighter_site():
    wards = ["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 3 + ["e"]
    source = tuple(Record("x", groups={"ward": ward}) for ward in wards)
    sites = partition(source, 2, "column", column="ward")
    check_cut(source, sites)
    found = [sorted({record.groups["ward"] for record in iterate(site)}) for site in sites]
    assert found == [["a", "d"], ["b", "c", "e"]]


@pytest.mark.parametrize("column", ["label", "person"])
def test_label_and_person_are_columns_too(column):
    sites = partition(CLINIC, 2, "column", column=column)
    check_cut(CLINIC, sites)
    values = [{getattr(record, column) for record in iterate(site)} for site in sites]
    assert not values[0] & values[1]


def test_a_group_of_that_name_comes_before_the_label():
    source = tuple(Record("x", label=str(n), groups={"label": str(n % 2)}) for n in range(6))
    sites = partition(source, 2, "column", column="label")
    assert positions(sites) == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("scheme", ["iid", "dirichlet"])
def test_the_cut_follows_the_seed(scheme):
    cuts = [positions(partition(CLINIC, 3, scheme, seed=seed)) for seed in (0, 0, 1)]
    assert cuts[0] == cuts[1] != cuts[2]


def test_a_subset_gives_its_records_and_plain_indices():
    site = partition(CLINIC, 3, "iid")[1]
    assert type(site.indices[0]) is int
    assert site[5] == CLINIC[site.indices[5]]


@pytest.mark.parametrize(
    ("source", "scheme", "num_sites", "column", "message"),
    [
        (records(3), "iid", 4, None, "expected at least 4 records for 4 sites, got 3"),
        (records(9, label=str), "dirichlet", 10, None, "expected at least 10 records for 10 sites"),
        (records(9, person=lambda n: "p"), "iid", 2, None, "at least 2 persons for 2 sites, got 1"),
        (records(9, label=lambda n: "x"), "column", 2, "label", "at least 2 values of 'label'"),
        (records(9), "dirichlet", 2, None, "expected 'label' in every record to cut the data by"),
        (records(9), "column", 2, "ward", "expected 'ward' in every record to cut the data by"),
        (records(9), "column", 2, "person", "expected 'person' in every record"),
        (records(9), "iid", 0, None, "expected one site or more, got 0"),
        (
            records(9, person=lambda n: "p" if n else None),
            "iid",
            2,
            None,
            "expected a person in every record or in none, got one in 8 of 9",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused(source, scheme, num_sites, column, message):
    with pytest.raises(DataError) as caught:
        partition(source, num_sites, scheme, column=column)
    assert message in str(caught.value)
