import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from audit.canaries.black_box import BlackBoxCanaries
from audit.canaries.canary_sites import CanarySites
from audit.canaries.claim import Claim, claim_of, judge, rounds_to_train, smallest_violation
from audit.canaries.observed import RowObserver
from audit.canaries.planting import Planting, plant, planting_at, train_planted
from audit.canaries.records import CanaryRecord, losses_of
from audit.canaries.reserved import canary_examples, reserve, unsuited
from audit.canaries.white_box import WhiteBoxCanaries
from audit.one_run import largest_bound, one_run_bound
from audit.subject import Subject
from audit.verdicts import Budget, NotRun, TestResult, Verdict
from core.audit_seed import AuditSeed
from core.errors import ScoreError
from privacy.accounting import epsilon_report
from privacy.dp_sgd import DpSgdPlan
from privacy.events import event_from_json
from tests.support.audited import simulated_subject
from tests.support.federation import FEDERATION
from tests.support.language_subject import language_subject

# Large enough for canaries to refute its claim, and with records that take part often.
WIDE = (
    FEDERATION.replace("num_examples = 40", "num_examples = 400")
    .replace("global_batch_size = 8", "global_batch_size = 100")
    .replace("micro_batch_size = 4", "micro_batch_size = 64")
    .replace("steps_per_round = 2", "steps_per_round = 6")
    .replace("noise_multiplier = 1.0", "noise_multiplier = 4.0")
)
PLAIN = WIDE.replace("noise_multiplier = 4.0", 'mode = "none"').replace(
    "[simulation]", "[simulation]\nallow_non_private = true"
)


class BrokenSubject(Subject):
    """Trains with other constants than it claims: what a defect in the mechanism comes to."""

    noise_factor = 1.0
    clip_factor = 1.0

    def plan(self, site, *, steps=None):
        plan = super().plan(site, steps=steps)
        return replace(
            plan,
            noise_multiplier=plan.noise_multiplier * self.noise_factor,
            max_grad_norm=plan.max_grad_norm * self.clip_factor,
        )


class NoNoise(BrokenSubject):
    noise_factor = 1e-3


class ClipTenfold(BrokenSubject):
    """The noise is as before: a tenth of what the clip then asks for."""

    noise_factor = 0.1
    clip_factor = 10.0


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return simulated_subject(tmp_path_factory.mktemp("private"), federation=WIDE)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return simulated_subject(tmp_path_factory.mktemp("plain"), federation=PLAIN)


def broken(kind, subject):
    return kind(**{name: getattr(subject, name) for name in subject.__dataclass_fields__})


def reseeded(subject, number):
    return replace(subject, seed=AuditSeed(number.to_bytes(32, "big")))


def run(test, subject, seconds=600.0) -> TestResult:
    result = test.run(subject, Budget(seconds))
    assert isinstance(result, TestResult), result
    return result


def measured(result, name):
    return next(m for m in result.measures if m.name == name)


def proven(result):
    return measured(result, "epsilon-proven")


def test_a_correct_run_proves_no_more_than_it_claims(subject):
    for number in range(2):
        check_correct(reseeded(subject, number))


@pytest.mark.soak
def test_twenty_correct_runs_prove_no_more_than_they_claim(subject):
    for number in range(20):
        check_correct(reseeded(subject, number))


def check_correct(subject):
    result = run(WhiteBoxCanaries(), subject)
    assert proven(result).value <= proven(result).limit
    assert result.verdict == Verdict.PASS
    assert result.smallest_effect.value > proven(result).limit
    assert result.p_value > 0.05


@pytest.mark.parametrize("kind", [NoNoise, ClipTenfold])
def test_a_mechanism_without_its_noise_is_caught(subject, kind):
    for number in range(2):
        check_caught(broken(kind, reseeded(subject, number)))


@pytest.mark.soak
@pytest.mark.parametrize("kind", [NoNoise, ClipTenfold])
def test_a_mechanism_without_its_noise_is_caught_twenty_times_of_twenty(subject, kind):
    for number in range(20):
        check_caught(broken(kind, reseeded(subject, number)))


def check_caught(subject):
    result = run(WhiteBoxCanaries(), subject)
    assert result.verdict == Verdict.FAIL
    assert proven(result).value > proven(result).limit
    assert "claim is broken" in result.headline
    assert result.p_value <= 0.05


def test_the_released_model_alone_shows_that_the_noise_is_missing(subject):
    assert run(BlackBoxCanaries(), subject).verdict == Verdict.PASS
    trains_long = subject.config.model_copy(
        update={"train": replace(subject.config.train, steps_per_round=12, learning_rate=0.05)}
    )
    result = run(BlackBoxCanaries(), broken(NoNoise, replace(subject, config=trains_long)))
    assert measured(result, "canary-auc").interval.low > 0.6


def test_a_run_without_privacy_claims_nothing_and_is_seen_through(plain):
    result = run(WhiteBoxCanaries(), plain)
    assert result.verdict == Verdict.INCONCLUSIVE
    assert proven(result).limit is None
    assert proven(result).value >= 2.5
    assert "no guarantee" in result.headline
    assert "are found" in result.headline
    assert result.smallest_effect is None


def test_without_privacy_the_same_seed_gives_the_same_result(plain):
    assert run(WhiteBoxCanaries(), plain) == run(WhiteBoxCanaries(), plain)
    assert run(BlackBoxCanaries(), plain) == run(BlackBoxCanaries(), plain)


def test_a_model_that_saw_no_canary_proves_nothing(subject):
    found = []
    for number in range(20):
        planting = planting_at(reseeded(subject, number), 200, purpose="control")
        assert isinstance(planting, Planting)
        examples = canary_examples(planting.reserved, length=8, labels=[0] * planting.count)
        losses = losses_of(planting.reserved.model, planting.reserved.subject, examples).numpy()
        found.append(one_run_bound(-losses, planting.included, 1e-5).epsilon)
    assert sum(epsilon > 0 for epsilon in found) <= 3  # of 20 at 5 %: more has a chance of 1.6 %


def test_sites_are_seen_in_the_sum_of_updates_without_privacy(plain):
    result = run(CanarySites(), plain)
    assert measured(result, "site-epsilon-proven").value > 1
    assert result.headline.startswith("No privacy is promised")
    assert "shows which planted sites" in result.headline


def test_of_a_private_run_it_is_said_that_sites_are_promised_nothing(subject):
    result = run(CanarySites(sites=16), subject)
    assert result.verdict == Verdict.INCONCLUSIVE
    assert measured(result, "site-epsilon-proven").limit is None
    assert result.headline.startswith("Privacy is promised to single records, not to a whole site")


def test_sites_are_not_guessed_at_where_time_runs_out(plain):
    result = CanarySites().run(plain, Budget(0.0))
    assert isinstance(result, NotRun)
    assert "no time" in result.reason


def test_time_that_runs_out_ends_the_training_and_lowers_the_claim(subject):
    result = run(WhiteBoxCanaries(), subject, seconds=0.0)
    site = subject.sites["west"]
    assert proven(result).limit == claim_of(subject, site, 1).epsilon
    assert any("time limit" in note for note in result.notes)


def test_the_coins_follow_from_the_seed_and_the_purpose(subject):
    first, again = (planting_at(subject, 64, purpose="one") for _ in range(2))
    other = planting_at(subject, 64, purpose="other")
    reseed = planting_at(reseeded(subject, 1), 64, purpose="one")
    assert (first.included == again.included).all()
    assert (first.included != other.included).any()
    assert (first.included != reseed.included).any()
    many = np.mean([planting_at(reseeded(subject, n), 64, purpose="x").included for n in range(9)])
    assert 0.4 < many < 0.6


def test_which_records_are_there_does_not_depend_on_the_canaries(subject):
    planting = planting_at(subject, 400, purpose="records")
    examples = canary_examples(planting.reserved, length=1, labels=[0] * planting.count)
    everything = replace(planting, included=np.ones(planting.count, dtype=bool))
    nothing = replace(planting, included=np.zeros(planting.count, dtype=bool))
    with_all, with_none = plant(everything, examples), plant(nothing, examples)
    assert len(with_all) <= planting.site.terms.max_examples
    assert len(with_all) - len(with_none) == planting.count
    records = [with_none[index] for index in range(len(with_none))]
    assert records == [with_all[index] for index in range(len(with_none))]
    assert not any(isinstance(record, CanaryRecord) for record in records)
    assert all(isinstance(with_all[len(records) + n], CanaryRecord) for n in range(400))


def test_reserved_rows_are_beyond_every_text_and_change_no_other_weight(subject):
    reserved = reserve(subject, 64, purpose="rows")
    assert min(reserved.rows) >= subject.model.tokenizer.vocab_size
    assert len(set(reserved.rows)) == 64
    before, after = subject.initial_model(), reserved.model
    for (name, old), (same, new) in zip(
        before.named_parameters(), after.named_parameters(), strict=True
    ):
        assert name == same
        assert new.requires_grad
        assert torch.equal(new[: len(old)] if new.dim() else new, old)
    assert len(after.transformer.token_embedding.weight) == max(reserved.rows) + 1


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_gets_rows_at_both_ends(plain, tied):
    reserved = reserve(language_subject(plain, tied=tied), 64, purpose="rows")
    model = reserved.model
    size = max(reserved.rows) + 1
    assert (model.head.weight is model.transformer.token_embedding.weight) == tied
    examples = canary_examples(reserved, length=4, labels=[0] * 64)
    batch = reserved.subject.blueprint.task.collate(examples)
    assert model(batch.tokens, batch.attention_mask).shape == (64, 4, size)
    assert torch.isfinite(losses_of(model, reserved.subject, examples)).all()


@pytest.mark.parametrize("tied", [True, False])
def test_canaries_are_found_in_a_language_model_without_privacy(plain, tied):
    result = run(WhiteBoxCanaries(), language_subject(plain, tied=tied))
    assert proven(result).value > 2


def test_the_observer_sees_every_step_and_the_noise_in_it(subject):
    planting = planting_at(subject, 64, purpose="observer")
    nobody = replace(planting, included=np.zeros(64, dtype=bool))
    examples = canary_examples(planting.reserved, length=1, labels=[0] * 64)
    plan = subject.plan(planting.site)
    observer = RowObserver(planting.reserved, examples, plan)
    with observer.watching():
        records = plant(nobody, examples)
        assert train_planted(nobody, records, rounds=2, budget=Budget(600)) == 2
    assert observer.steps == 2 * plan.steps
    # No canary was in: what moves the scores is the noise.
    assert np.std(observer.scores) > 0
    train_planted(nobody, records, rounds=1, budget=Budget(600))
    assert observer.steps == 2 * plan.steps


def test_evidence_is_the_likelihood_ratio_of_a_step(subject):
    plan = DpSgdPlan(
        noise_multiplier=0.7,
        max_grad_norm=2.0,
        sample_rate=0.3,
        expected_batch_size=10,
        max_batch_size=50,
        max_examples=50,
        steps=1,
        gradient_mode="hooks",
    )
    planting = planting_at(subject, 16, purpose="evidence")
    examples = canary_examples(planting.reserved, length=1, labels=[0] * 16)
    for value in (-3.0, 0.0, 0.4, 5.0):
        shift = value * 10 / 2.0
        density = [math.exp(-((shift - at) ** 2) / (2 * 0.7**2)) for at in (0.0, 1.0)]
        wanted = math.log(0.7 + 0.3 * density[1] / density[0])
        observer = RowObserver(planting.reserved, examples, plan)
        assert observer.evidence(np.array([value]))[0] == pytest.approx(wanted, rel=1e-9)
    always = RowObserver(planting.reserved, examples, replace(plan, sample_rate=1.0))
    assert always.evidence(np.array([0.2]))[0] == pytest.approx(0.5 / 0.7**2)
    sure = RowObserver(planting.reserved, examples, replace(plan, noise_multiplier=1e-3))
    assert np.isfinite(sure.evidence(np.array([50.0]))).all()


def test_the_claim_is_that_of_the_accountant(subject):
    site = subject.sites["north"]
    claim = claim_of(subject, site, 3)
    debits = [entry for entry in site.ledger if entry.kind == "reserve"]
    assert len(debits) == 3
    report = epsilon_report([event_from_json(e.body["event"]) for e in debits], claim.delta)
    assert claim.epsilon == claim.total == pytest.approx(report.epsilon, rel=1e-6)
    assert claim_of(subject, site, 1).epsilon < claim.epsilon


def test_as_many_rounds_are_trained_as_the_canaries_can_refute(subject):
    site = subject.sites["north"]
    few = rounds_to_train(subject, site, 16, most=3)
    many = rounds_to_train(subject, site, 400, most=3)
    assert few == 1
    room = 0.75 * largest_bound(400, subject.config.privacy.target_delta)
    assert claim_of(subject, site, many).epsilon <= room
    assert many == 3 or claim_of(subject, site, many + 1).epsilon > room
    assert rounds_to_train(subject, site, 400, most=2) <= 2


def test_an_embedding_that_is_not_trained_takes_no_canaries(subject):
    frozen = ("transformer.token_embedding",)
    subject = replace(subject, blueprint=replace(subject.blueprint, frozen=frozen))
    reason = unsuited(subject)
    assert "does not train the token embedding" in reason
    for test in (WhiteBoxCanaries(), BlackBoxCanaries(), CanarySites()):
        assert test.run(subject, Budget(60)) == NotRun(test=test.card.id, reason=reason)


def test_noise_that_the_sites_share_is_not_taken_for_one_sites(subject):
    privacy = subject.config.privacy.model_copy(update={"mode": "distributed"})
    config = subject.config.model_copy(update={"privacy": privacy})
    result = WhiteBoxCanaries().run(replace(subject, config=config), Budget(60))
    assert isinstance(result, NotRun)
    assert "share the noise" in result.reason


def test_a_site_whose_terms_cover_too_few_records_is_not_judged(subject):
    sites = {
        name: replace(site, terms=site.terms.model_copy(update={"max_examples": 12}))
        for name, site in subject.sites.items()
    }
    result = WhiteBoxCanaries().run(replace(subject, sites=sites), Budget(60))
    assert isinstance(result, NotRun)
    assert "too few" in result.reason


def test_a_deployed_run_needs_no_records_to_be_audited(subject):
    sites = {name: replace(site, split=None) for name, site in subject.sites.items()}
    assert run(WhiteBoxCanaries(), replace(subject, sites=sites)).verdict == Verdict.PASS


def test_perfect_guesses_break_a_small_claim_and_only_that():
    included = np.arange(200) % 2 == 0
    scores = included.astype(float) + np.linspace(0, 0.1, 200)
    below, above = (Claim(e, 1e-5, 1, e) for e in (2.0, 5.0))
    assert judge("D1", below, scores, included).verdict == Verdict.FAIL
    unrefuted = judge("D1", above, scores, included)
    assert unrefuted.verdict == Verdict.INCONCLUSIVE
    assert unrefuted.smallest_effect is None
    assert "could not have refuted" in unrefuted.headline


def test_what_is_seen_without_being_proven_is_not_called_unseen():
    rng = np.random.default_rng(0)
    included = np.arange(60) % 2 == 0
    evenly = torch.special.ndtri((torch.arange(30, dtype=torch.float64) + 0.5) / 30).numpy()
    scores = np.repeat(evenly, 2) + 0.6 * included
    found = judge("D3", Claim(None, 1e-5, 1, None), scores, included, planted="planted sites")

    assert measured(found, "epsilon-proven").value == 0
    assert measured(found, "canary-auc").interval.low > 0.5
    assert "told better than by guessing" in found.headline
    blind = judge("D3", Claim(None, 1e-5, 1, None), rng.normal(size=60), included)
    assert "no planted record was seen" in blind.headline


@pytest.mark.parametrize("test", [WhiteBoxCanaries(), BlackBoxCanaries()])
def test_how_few_records_stand_beside_the_canaries_is_declared(subject, test):
    assert any("No more of the site's own records" in words for words in test.card.assumes)
    planting = planting_at(subject, 64, purpose="white-box")
    examples = canary_examples(planting.reserved, length=1, labels=[0] * planting.count)
    records = plant(planting, examples)
    assert len(records) - int(planting.included.sum()) <= planting.count


def test_guesses_the_wrong_way_round_prove_nothing():
    included = np.arange(200) % 2 == 0
    scores = -(included.astype(float) + np.linspace(0, 0.1, 200))
    assert judge("D1", Claim(2.0, 1e-5, 1, 2.0), scores, included).verdict == Verdict.PASS


def test_coins_that_fell_all_one_way_are_refused():
    with pytest.raises(ScoreError, match="in and out"):
        judge("D1", Claim(1.0, 1e-5, 1, 1.0), np.arange(20.0), np.ones(20, dtype=bool))


def test_the_smallest_violation_is_found_as_often_as_is_said():
    claim, canaries = 1.0, 200
    violation = smallest_violation(canaries, claim, 1e-6)
    assert violation > claim
    at, below = caught(violation, claim, canaries), caught((claim + violation) / 2, claim, canaries)
    assert at >= 0.7
    assert below < 0.7


def caught(epsilon, claim, canaries):
    rng = np.random.default_rng(5)
    chance = 1 / (1 + math.exp(-epsilon))
    found = 0
    for _ in range(200):
        included = rng.random(canaries) < 0.5
        told = np.where(rng.random(canaries) < chance, included, ~included)
        scores = told + rng.random(canaries) / 10
        found += one_run_bound(scores, included, 1e-6).epsilon > claim
    return found / 200


def test_no_violation_is_promised_that_no_result_could_show():
    assert smallest_violation(16, 3.0, 1e-6) is None
    assert smallest_violation(512, 3.0, 1e-6) is not None
