"""One round at a real site: what is checked, debited and returned, and in which order."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.local_round import local_round
from client.site import TestRandomness, check_size
from core.config_sections import SecureAggregationSection
from core.data.dataset import TokenizedDataset
from core.data.records import Subset
from core.digests import arrays_digest
from core.errors import (
    BudgetExceededError,
    CheckpointError,
    CloisterError,
    ConfigError,
    LedgerRollbackError,
    MessageError,
    PolicyRefusedError,
    PrivacyError,
    TokenizerError,
)
from core.lora import LoraConfig
from core.messages import LedgerHead
from tests.support.site import SiteAtWork, load_data, make_site


def run(at_work: SiteAtWork, order=None):  # type: ignore[no-untyped-def]
    return local_round(at_work.site, at_work.workshop, order or at_work.order, at_work.arrays)


def entries(at_work: SiteAtWork) -> list[str]:
    with at_work.site.open_ledger() as ledger:
        return [entry.kind for entry in ledger.entries()]


def test_a_round_is_debited_settled_and_answered(tmp_path: Path) -> None:
    at_work = make_site(tmp_path)
    result = run(at_work)
    assert entries(at_work) == ["open", "reserve", "settle"]
    assert result.reply.arrays_digest == arrays_digest(result.arrays)
    assert result.reply.spent.private
    assert result.reply.spent.epsilon is not None
    assert result.reply.spent.epsilon > 0
    assert result.reply.num_examples == at_work.order.num_examples
    assert any((result.arrays[name] != at_work.arrays[name]).any() for name in result.arrays)
    with at_work.site.open_ledger() as ledger:
        settled = ledger.entries()[-1].body
        assert settled["executed_steps"] == at_work.order.terms.train.steps_per_round
        assert result.reply.ledger_head == ledger.head()


def test_epsilon_grows_from_round_to_round(tmp_path: Path) -> None:
    at_work = make_site(tmp_path)
    spent = [
        run(at_work, at_work.change(server_round=number)).reply.spent.epsilon
        for number in (1, 2, 3)
    ]
    assert spent == sorted(spent)
    assert len(set(spent)) == 3


def test_the_reply_carries_nothing_that_follows_the_records(tmp_path: Path) -> None:
    """Sites that hold other records, and another number of them, say the same."""
    replies = []
    for name, kept in (("all", range(40)), ("few", range(7))):
        at_work = make_site(tmp_path / name)
        records = Subset(load_data(tmp_path / name, ("calm", "storm")), kept)
        data = TokenizedDataset(records, at_work.workshop.blueprint.task)
        at_work.site = replace(at_work.site, data=data)
        reply = run(at_work).reply.model_dump(exclude={"arrays_digest", "ledger_head"})
        replies.append(reply)
    assert replies[0] == replies[1]


def test_a_refusal_of_the_policy_leaves_no_trace_in_the_ledger(tmp_path: Path) -> None:
    at_work = make_site(tmp_path, policy={"allowed_tasks": ()})
    with pytest.raises(PolicyRefusedError):
        run(at_work)
    assert not (tmp_path / "ledger.sqlite").exists()


def test_what_is_to_be_masked_is_never_returned_in_the_clear(tmp_path: Path) -> None:
    at_work = make_site(tmp_path)
    order = at_work.change_terms(secure_aggregation=SecureAggregationSection())
    with pytest.raises(PolicyRefusedError, match="expected terms whose updates travel unmasked"):
        run(at_work, order)
    assert entries(at_work) == ["open"]


def test_the_cap_refuses_and_nothing_is_trained(tmp_path: Path) -> None:
    at_work = make_site(tmp_path, policy={"max_epsilon": 0.1})
    with pytest.raises(BudgetExceededError, match=r"0\.1"):
        run(at_work)
    assert entries(at_work) == ["open"]


def test_an_order_is_run_once(tmp_path: Path) -> None:
    at_work = make_site(tmp_path)
    run(at_work, at_work.change(server_round=2, attempt=2))
    for old in ({"server_round": 2, "attempt": 2}, {"server_round": 2}, {"server_round": 1}):
        with pytest.raises(MessageError, match="expected an order after round 2, attempt 2"):
            run(at_work, at_work.change(**old))
    run(at_work, at_work.change(server_round=2, attempt=3))
    run(at_work, at_work.change(run_id="f" * 16))


def test_other_weights_than_the_named_ones_are_refused(tmp_path: Path) -> None:
    at_work = make_site(tmp_path)
    at_work.arrays["head.bias"] = at_work.arrays["head.bias"] + np.float32(1)
    with pytest.raises(MessageError, match="expected the weights that the task names"):
        run(at_work)


def test_another_tokenizer_is_refused_before_the_ledger_is_touched(tmp_path: Path) -> None:
    at_work = make_site(tmp_path)
    order = at_work.change_terms(tokenizer_digest="0" * 64)
    allowed = at_work.site.policy.model_copy(update={"allowed_tasks": (order.task_digest,)})
    at_work.site = replace(at_work.site, policy=allowed)
    with pytest.raises(TokenizerError, match="same tokenizer file at every site"):
        run(at_work, order)
    assert not (tmp_path / "ledger.sqlite").exists()


def test_other_initial_weights_are_refused(tmp_path: Path) -> None:
    at_work = make_site(tmp_path)
    order = at_work.change_terms(base_digest="0" * 64)
    allowed = at_work.site.policy.model_copy(update={"allowed_tasks": (order.task_digest,)})
    at_work.site = replace(at_work.site, policy=allowed)
    with pytest.raises(CheckpointError, match="expected initial weights 0000000000000000"):
        run(at_work, order)


def test_a_ledger_shorter_than_the_coordinator_remembers_is_refused(tmp_path: Path) -> None:
    at_work = make_site(tmp_path)
    witness = LedgerHead(sequence=9, digest="a" * 64)
    with pytest.raises(LedgerRollbackError, match="expected at least the 9 entries"):
        run(at_work, at_work.change(ledger_witness=witness))


def test_a_coordinator_cannot_ask_for_the_number_of_records(tmp_path: Path) -> None:
    at_work = make_site(tmp_path)
    assert at_work.order.dp_sgd is not None
    answers = set()
    for size in (39, 40):
        bound = at_work.order.dp_sgd.model_copy(update={"max_examples": size})
        with pytest.raises(CloisterError) as info:
            run(at_work, at_work.change(dp_sgd=bound))
        answers.add(info.value.code)
    assert answers == {"policy-refused"}
    assert not (tmp_path / "ledger.sqlite").exists()


def test_more_records_than_declared_are_refused_without_their_number(tmp_path: Path) -> None:
    site = replace(make_site(tmp_path).site, num_examples=31)
    with pytest.raises(PrivacyError, match="expected at most 39 records at north") as info:
        check_size(site)
    assert "40" not in str(info.value)
    check_size(replace(site, num_examples=32))


def test_predictable_noise_marks_the_ledger_for_good(tmp_path: Path) -> None:
    at_work = make_site(tmp_path, policy={"allow_test_noise": True}, test_noise=True)
    spent = run(at_work).reply.spent
    assert (spent.epsilon, spent.private) == (None, False)


def test_predictable_noise_is_the_same_at_every_attempt_and_fresh_noise_never(
    tmp_path: Path,
) -> None:
    policy = {"allow_test_noise": True}
    again = [make_site(tmp_path / name, policy=policy, test_noise=True) for name in "ab"]
    first = run(again[0]).arrays
    second = run(again[1], again[1].change(attempt=7, run_id="e" * 16)).arrays
    assert arrays_digest(first) == arrays_digest(second)
    fresh = [run(make_site(tmp_path / name)).arrays for name in "cd"]
    assert arrays_digest(fresh[0]) != arrays_digest(fresh[1])


def test_a_test_key_never_shows() -> None:
    assert "ab" not in repr(TestRandomness(b"\xab" * 32)).replace("TestRandomness", "")


def test_no_privacy_is_written_down(tmp_path: Path) -> None:
    at_work = make_site(
        tmp_path, overrides=('privacy={mode="none"}',), policy={"allow_non_private": True}
    )
    spent = run(at_work).reply.spent
    assert (spent.epsilon, spent.private) == (None, False)


def test_another_task_than_the_installed_one_is_refused(tmp_path: Path) -> None:
    """Labels in another order have the same weights, and would be learned the wrong way round."""
    at_work = make_site(tmp_path)
    turned = at_work.order.terms.task.model_copy(update={"labels": ("storm", "calm")})
    order = at_work.change_terms(task=turned)
    allowed = at_work.site.policy.model_copy(update={"allowed_tasks": (order.task_digest,)})
    at_work.site = replace(at_work.site, policy=allowed)
    with pytest.raises(ConfigError, match="expected the task and the trained parameters"):
        run(at_work, order)


def test_adapters_that_are_not_installed_are_refused(tmp_path: Path) -> None:
    """Their scale is in no weight, and so in no digest of weights."""
    at_work = make_site(tmp_path)
    lora = LoraConfig(rank=1, alpha=2.0, targets=("head",))
    order = at_work.change_terms(train=replace(at_work.order.terms.train, lora=lora))
    allowed = at_work.site.policy.model_copy(update={"allowed_tasks": (order.task_digest,)})
    at_work.site = replace(at_work.site, policy=allowed)
    with pytest.raises(ConfigError, match="expected the task and the trained parameters"):
        run(at_work, order)


def test_of_two_equal_orders_at_once_one_is_run(tmp_path: Path) -> None:
    at_work = make_site(tmp_path)

    def attempt(_: int) -> str:
        try:
            run(at_work)
        except MessageError:
            return "refused"
        return "run"

    with ThreadPoolExecutor(4) as threads:
        outcomes = sorted(threads.map(attempt, range(4)))
    assert outcomes == ["refused", "refused", "refused", "run"]
    assert entries(at_work) == ["open", "reserve", "settle"]


def test_a_released_workshop_builds_the_same_model_again(tmp_path: Path) -> None:
    """Between runs nothing of a model is kept, and the next run does not notice."""
    at_work = make_site(tmp_path)
    first = at_work.workshop.model(at_work.order.terms)
    before = {name: p.detach().clone() for name, p in first.named_parameters()}
    run(at_work)
    at_work.workshop.release()
    second = at_work.workshop.model(at_work.order.terms)
    assert second is not first
    assert all((p == before[name]).all() for name, p in second.named_parameters())
