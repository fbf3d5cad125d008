"""What a site's policy refuses, by name; default is no."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.policy import check_policy
from core.config_sections import PrivacySection, SecureAggregationSection
from core.errors import CohortTooSmallError, PolicyRefusedError
from core.messages import AggregationOrder, DpSgdTerms, TrainTask
from privacy.accounting import calibrate_noise_multiplier, delta_for_nearly_gaussian
from tests.support.site import SiteAtWork, make_site


@pytest.fixture
def at_work(tmp_path: Path) -> SiteAtWork:
    return make_site(tmp_path)


def check(at_work: SiteAtWork, order: TrainTask, **policy: Any) -> None:
    """With the changed order's own hash approved, so that the bound itself is what refuses."""
    allowed = at_work.site.policy.model_copy(
        update={"allowed_tasks": (order.task_digest,), **policy}
    )
    check_policy(
        order,
        allowed,
        site="north",
        num_examples=40,
        predictable_noise=False,
        total_examples=120,
    )


def dp_sgd(at_work: SiteAtWork, **changes: Any) -> DpSgdTerms:
    assert at_work.order.dp_sgd is not None
    return at_work.order.dp_sgd.model_copy(update=changes)


def test_what_the_policy_allows_passes(at_work: SiteAtWork) -> None:
    check(at_work, at_work.order)


def test_a_task_that_nobody_approved_is_refused(at_work: SiteAtWork) -> None:
    with pytest.raises(PolicyRefusedError, match="expected a task that this site approved") as info:
        check(at_work, at_work.order, allowed_tasks=())
    assert at_work.order.task_digest in str(info.value)
    assert "hint: read its terms, then add the hash to policy.allowed_tasks" in str(info.value)


def test_terms_that_differ_from_their_hash_are_refused(at_work: SiteAtWork) -> None:
    terms = at_work.order.terms
    weaker = terms.privacy.model_copy(update={"max_grad_norm": 9.0})
    order = at_work.change(terms=terms.model_copy(update={"privacy": weaker}))
    with pytest.raises(PolicyRefusedError, match="expected terms with the hash"):
        check(at_work, order)


def test_another_site_s_task_is_refused(at_work: SiteAtWork) -> None:
    with pytest.raises(PolicyRefusedError, match="expected a task for north, got one for south"):
        check(at_work, at_work.change(site="south"))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"max_rounds": 2}, "expected rounds of at most 2, got 3"),
        ({"max_steps_per_round": 1}, "expected steps per round of at most 1, got 2"),
        ({"max_grad_norm": 0.5}, r"expected clip \(max_grad_norm\) of at most 0.5, got 1.0"),
        ({"max_delta": 1e-6}, "expected delta of at most 1e-06, got 1e-05"),
        ({"min_noise_multiplier": 1.5}, "expected a noise multiplier of at least 1.5, got 1.0"),
    ],
)
def test_each_bound_of_the_policy_holds(
    at_work: SiteAtWork, policy: dict[str, Any], message: str
) -> None:
    with pytest.raises(PolicyRefusedError, match=message):
        check(at_work, at_work.order, **policy)


def test_a_round_beyond_the_run_is_refused(at_work: SiteAtWork) -> None:
    with pytest.raises(PolicyRefusedError, match="expected round number of at most 3, got 4"):
        check(at_work, at_work.change(server_round=4))


def test_a_sampling_rate_above_the_public_one_is_refused(at_work: SiteAtWork) -> None:
    with pytest.raises(PolicyRefusedError, match="expected a sampling rate of at most 0.2"):
        check(at_work, at_work.change(dp_sgd=dp_sgd(at_work, sample_rate=0.3)))


def test_privacy_without_constants_is_refused(at_work: SiteAtWork) -> None:
    with pytest.raises(PolicyRefusedError, match="expected privacy constants in mode local"):
        check(at_work, at_work.change(dp_sgd=None))


def test_predictable_noise_needs_leave(at_work: SiteAtWork) -> None:
    with pytest.raises(PolicyRefusedError, match="expected noise that nobody can predict"):
        check_policy(
            at_work.order,
            at_work.site.policy,
            site="north",
            num_examples=40,
            predictable_noise=True,
        )
    allowed = at_work.site.policy.model_copy(update={"allow_test_noise": True})
    check_policy(at_work.order, allowed, site="north", num_examples=40, predictable_noise=True)


def test_no_privacy_needs_leave(tmp_path: Path) -> None:
    at_work = make_site(tmp_path, overrides=('privacy={mode="none"}',))
    with pytest.raises(PolicyRefusedError, match="expected a run with privacy"):
        check(at_work, at_work.order)
    check(at_work, at_work.order, allow_non_private=True)


def test_no_privacy_with_constants_contradicts_itself(tmp_path: Path) -> None:
    at_work = make_site(tmp_path, overrides=('privacy={mode="none"}',))
    constants = make_site(tmp_path / "private").order.dp_sgd
    with pytest.raises(PolicyRefusedError, match="expected no privacy constants in mode none"):
        check(at_work, at_work.change(dp_sgd=constants), allow_non_private=True)


def test_sizes_that_the_site_did_not_declare_are_refused_alike(at_work: SiteAtWork) -> None:
    """Else a coordinator that asks for one bound after another learns the number of records."""
    for size in (39, 40, 41, 10**9):
        with pytest.raises(PolicyRefusedError, match="expected the declared size 40, which stands"):
            check(at_work, at_work.change(dp_sgd=dp_sgd(at_work, max_examples=size)))
    with pytest.raises(PolicyRefusedError, match="expected the declared size 40"):
        check(at_work, at_work.change(num_examples=8))


def test_a_site_that_declared_no_size_takes_part_in_no_private_run(at_work: SiteAtWork) -> None:
    with pytest.raises(PolicyRefusedError, match="expected a site with a declared public size"):
        check_policy(
            at_work.order,
            at_work.site.policy,
            site="north",
            num_examples=None,
            predictable_noise=False,
        )


def approved_privacy(at_work: SiteAtWork, privacy: PrivacySection, noise: float) -> TrainTask:
    order = at_work.change_terms(privacy=privacy)
    terms = dp_sgd(at_work, noise_multiplier=noise)
    return order.model_copy(update={"dp_sgd": terms})


def test_less_noise_than_the_approved_terms_name_is_refused(at_work: SiteAtWork) -> None:
    privacy = PrivacySection(noise_multiplier=2.0)
    check(at_work, approved_privacy(at_work, privacy, 2.0))
    with pytest.raises(PolicyRefusedError, match="noise multiplier of at least 2.0, got 1.9"):
        check(at_work, approved_privacy(at_work, privacy, 1.9))


def test_noise_that_misses_the_approved_epsilon_is_refused(at_work: SiteAtWork) -> None:
    privacy = PrivacySection(target_epsilon=2.0)
    enough = calibrate_noise_multiplier(
        target_epsilon=2.0,
        target_delta=privacy.target_delta,
        sample_rate=0.2,
        steps=6,
        max_batch_size=16,
        max_examples=50,
    )
    check(at_work, approved_privacy(at_work, privacy, enough))
    with pytest.raises(PolicyRefusedError, match="costs epsilon 2 at most, got .* costs 2.0"):
        check(at_work, approved_privacy(at_work, privacy, enough * 0.99))


# Secure aggregation, in every mode

MEMBERS = ("north", "south", "west")


def aggregation(members: tuple[str, ...] = MEMBERS) -> AggregationOrder:
    return AggregationOrder(
        nonce="6" * 64,
        roster_epoch=1,
        roster_digest="7" * 64,
        members=members,
        dimension=10_000,
        deadline="2030-01-31T12:00:00Z",
    )


def summed(at_work: SiteAtWork, **section: Any) -> TrainTask:
    """The order, under secure aggregation."""
    order = at_work.change_terms(secure_aggregation=SecureAggregationSection(**section))
    return order.model_copy(update={"aggregation": aggregation()})


NO_PRIVACY = ('privacy={mode="none"}',)


@pytest.fixture(params=["local", "none"])
def any_mode(request: pytest.FixtureRequest, tmp_path: Path) -> SiteAtWork:
    return make_site(tmp_path, overrides=NO_PRIVACY if request.param == "none" else ())


def check_any(at_work: SiteAtWork, order: TrainTask, **policy: Any) -> None:
    check(at_work, order, allow_non_private=True, **policy)


def test_a_site_takes_part_with_secure_aggregation_and_without(any_mode: SiteAtWork) -> None:
    check_any(any_mode, any_mode.order)
    check_any(any_mode, summed(any_mode))


def test_a_site_that_requires_secure_aggregation_shows_nobody_its_update(
    any_mode: SiteAtWork,
) -> None:
    check_any(any_mode, summed(any_mode), secure_aggregation="required")
    with pytest.raises(PolicyRefusedError, match="expected a run with secure aggregation, got one"):
        check_any(any_mode, any_mode.order, secure_aggregation="required")


def test_a_site_without_secure_aggregation_refuses_it(any_mode: SiteAtWork) -> None:
    check_any(any_mode, any_mode.order, secure_aggregation="off")
    with pytest.raises(PolicyRefusedError, match="expected a run without secure aggregation"):
        check_any(any_mode, summed(any_mode), secure_aggregation="off")


def test_sums_of_fewer_sites_than_the_site_s_floor_are_refused(any_mode: SiteAtWork) -> None:
    order = summed(any_mode, min_cohort=4).model_copy(
        update={"aggregation": aggregation((*MEMBERS, "zeal"))}
    )
    check_any(any_mode, order, min_cohort=4)
    with pytest.raises(PolicyRefusedError, match="sums of at least 5 sites, got terms that allow"):
        check_any(any_mode, order, min_cohort=5)
    with pytest.raises(PolicyRefusedError, match="expected a sum of at least 4 sites, got 3"):
        check_any(any_mode, order.model_copy(update={"aggregation": aggregation()}), min_cohort=4)


def test_an_order_that_is_not_for_the_sum_of_its_terms_is_refused(any_mode: SiteAtWork) -> None:
    order = summed(any_mode)
    with pytest.raises(
        PolicyRefusedError, match="exactly where its terms name it, got one without"
    ):
        check_any(any_mode, order.model_copy(update={"aggregation": None}))
    with pytest.raises(
        PolicyRefusedError, match="exactly where its terms name it, got one with it"
    ):
        check_any(any_mode, any_mode.change(aggregation=aggregation()))
    others = aggregation(("east", "south", "west"))
    with pytest.raises(PolicyRefusedError, match="expected north among the sites of the sum"):
        check_any(any_mode, order.model_copy(update={"aggregation": others}))


# Steps over all sites


DISTRIBUTED = (
    'privacy={mode="distributed", noise_multiplier=1.0}',
    'strategy={name="central"}',
    "train.steps_per_round=1",
    "secure_aggregation={}",
)


@pytest.fixture
def at_union(tmp_path: Path) -> SiteAtWork:
    at_work = make_site(tmp_path, overrides=DISTRIBUTED)
    at_work.order = at_work.change(
        dp_sgd=dp_sgd(at_work, sample_rate=8 / 120, max_batch_size=25), aggregation=aggregation()
    )
    return at_work


def test_a_step_over_all_sites_that_the_policy_allows_passes(at_union: SiteAtWork) -> None:
    check(at_union, at_union.order, secure_aggregation="required")


def test_a_step_over_all_sites_needs_secure_aggregation(at_union: SiteAtWork) -> None:
    order = at_union.change_terms(secure_aggregation=None).model_copy(update={"aggregation": None})
    with pytest.raises(PolicyRefusedError, match="secure aggregation in mode distributed") as info:
        check(at_union, order)
    assert "protects nobody" in info.value.hint


def test_a_step_over_all_sites_is_one(at_union: SiteAtWork) -> None:
    train = replace(at_union.order.terms.train, steps_per_round=2)
    with pytest.raises(PolicyRefusedError, match="expected one step a round in mode distributed"):
        check(at_union, at_union.change_terms(train=train))


def test_a_rate_above_that_of_all_public_sizes_is_refused(at_union: SiteAtWork) -> None:
    """A site's own size would allow three times as much."""
    order = at_union.change(dp_sgd=dp_sgd(at_union, sample_rate=0.07))
    with pytest.raises(PolicyRefusedError, match=r"a sampling rate of at most 0\.0666.* got 0\.07"):
        check(at_union, order)


def test_without_the_other_sites_public_sizes_there_is_no_step(at_union: SiteAtWork) -> None:
    allowed = at_union.site.policy.model_copy(
        update={"allowed_tasks": (at_union.order.task_digest,)}
    )
    with pytest.raises(PolicyRefusedError, match="public sizes of all sites in mode distributed"):
        check_policy(
            at_union.order, allowed, site="north", num_examples=40, predictable_noise=False
        )


def test_a_step_over_all_sites_has_the_noise_that_was_approved(at_union: SiteAtWork) -> None:
    with pytest.raises(PolicyRefusedError, match="noise multiplier of at least 1.0, got 0.9"):
        check(at_union, at_union.change(dp_sgd=dp_sgd(at_union, noise_multiplier=0.9)))
    with pytest.raises(PolicyRefusedError, match="noise multiplier of at least 1.5, got 1.0"):
        check(at_union, at_union.order, min_noise_multiplier=1.5)
    with pytest.raises(PolicyRefusedError, match="privacy constants in mode distributed, got none"):
        check(at_union, at_union.change(dp_sgd=None))


def test_the_whole_run_of_steps_over_all_sites_keeps_the_approved_epsilon(
    at_union: SiteAtWork,
) -> None:
    privacy = PrivacySection(mode="distributed", target_epsilon=1.0)
    enough = calibrate_noise_multiplier(
        target_epsilon=1.0,
        target_delta=delta_for_nearly_gaussian(privacy.target_delta),
        sample_rate=8 / 120,
        steps=3,
        max_batch_size=25,
        max_examples=50,
    )

    def asked(noise: float, terms: PrivacySection) -> TrainTask:
        order = at_union.change_terms(privacy=terms)
        constants = dp_sgd(at_union, noise_multiplier=noise)
        return order.model_copy(update={"dp_sgd": constants})

    check(at_union, asked(enough, privacy))
    with pytest.raises(PolicyRefusedError, match="costs epsilon 1 at most, got .* costs 1.0"):
        check(at_union, asked(enough * 0.99, privacy))


def test_more_colluding_sites_than_the_cohort_bears_are_refused(at_union: SiteAtWork) -> None:
    privacy = PrivacySection(mode="distributed", target_epsilon=50.0)
    order = at_union.change_terms(
        privacy=privacy, secure_aggregation=SecureAggregationSection(colluding_sites=2)
    )
    with pytest.raises(CohortTooSmallError, match="enough to bear 2 that collude, got 3"):
        check(at_union, order)
