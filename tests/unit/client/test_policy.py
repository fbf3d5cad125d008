"""What a site's policy refuses, by name; default is no."""

from pathlib import Path
from typing import Any

import pytest

from client.policy import check_policy
from core.config import PrivacySection
from core.errors import PolicyRefusedError
from core.messages import DpSgdTerms, TrainTask
from privacy.accounting import calibrate_noise_multiplier
from tests.support.site import SiteAtWork, make_site


@pytest.fixture
def at_work(tmp_path: Path) -> SiteAtWork:
    return make_site(tmp_path)


def check(at_work: SiteAtWork, order: TrainTask, **policy: Any) -> None:
    """With the changed order's own hash approved, so that the bound itself is what refuses."""
    allowed = at_work.site.policy.model_copy(
        update={"allowed_tasks": (order.task_digest,), **policy}
    )
    check_policy(order, allowed, site="north", num_examples=40, predictable_noise=False)


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
