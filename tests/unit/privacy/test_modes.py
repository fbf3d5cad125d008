"""What a round costs and how it trains, mode by mode."""

from typing import Any

import pytest
import torch
from torch import Tensor

from core.config_sections import PrivacySection
from core.errors import PrivacyError, TrainingError
from core.messages import DpSgdTerms, TrainTask
from core.train import PlainStepper, epoch_batches, make_loss, make_optimizer, run_steps
from privacy.distributed import distributed_event
from privacy.distributed_sum import ClippedSum
from privacy.dp_sgd import DpSgdPlan
from privacy.events import DpSgdEvent, NonPrivateEvent
from privacy.modes import PRIVACY_MODES, _plan, public_seed
from privacy.random_source import RandomSource
from tests.support.distributed import distributed_order
from tests.support.messages import TASK, TERMS
from tests.support.private_training import SilentTask, flat, known_source, tiny_model, train
from tests.support.tiny import TinyData, TinyTask, train_config

CONSTANTS = DpSgdTerms(noise_multiplier=0.8, sample_rate=0.4, max_batch_size=50, max_examples=5000)
EVENT = DpSgdEvent(
    noise_multiplier=0.8,
    sample_rate=0.4,
    max_batch_size=50,
    max_examples=5000,
    steps=4,
    max_grad_norm=0.5,
)


def order(
    mode: str = "local", *, server_round: int = 1, site: str = "north", **train: Any
) -> TrainTask:
    """A round of four steps."""
    privacy = (
        PrivacySection(noise_multiplier=0.8, max_grad_norm=0.5)
        if mode == "local"
        else PrivacySection(mode="none")
    )
    mu = train.pop("proximal_mu", 0.0)
    terms = TERMS.model_copy(
        update={
            "train": train_config(**train),
            "privacy": privacy,
            "proximal_mu": mu,
            "num_rounds": 3,
        }
    )
    return TASK.model_copy(
        update={
            "server_round": server_round,
            "site": site,
            "terms": terms,
            "task_digest": terms.digest(),
            "dp_sgd": CONSTANTS if mode == "local" else None,
        }
    )


def trained(
    task: TrainTask, *, kind: TinyTask | None = None, count: int = 20, model: Any = None
) -> tuple[Tensor, list[int]]:
    """Weights after a round, and the steps that were told."""
    model = model or tiny_model()
    executed: list[int] = []
    PRIVACY_MODES[task.terms.privacy.mode].train(
        model,
        kind or TinyTask(),
        TinyData.make(count),
        order=task,
        randomness=known_source(),
        executed=executed.append,
    )
    return flat(model), executed


# What is debited


def test_a_private_round_is_debited_as_its_steps() -> None:
    assert PRIVACY_MODES["local"].event(order(), RandomSource.fresh()) == EVENT


def test_predictable_noise_is_debited_as_a_release() -> None:
    event = PRIVACY_MODES["local"].event(order(), known_source())
    assert event == NonPrivateEvent("test-noise", EVENT)
    assert not event.private


@pytest.mark.parametrize("randomness", [RandomSource.fresh(), known_source()])
def test_a_round_without_privacy_is_debited_as_a_release(randomness: RandomSource) -> None:
    event = PRIVACY_MODES["none"].event(order("none"), randomness)
    assert event == NonPrivateEvent("no-privacy", None)
    assert not event.private


def test_what_is_trained_is_what_is_debited() -> None:
    task = order()
    plan = _plan(task)
    event = PRIVACY_MODES["local"].event(task, RandomSource.fresh())
    for name in set(vars(event)) & set(vars(plan)):
        assert getattr(event, name) == getattr(plan, name)
    assert len(set(vars(event)) & set(vars(plan))) == 6
    assert plan == DpSgdPlan(
        **{name: getattr(EVENT, name) for name in set(vars(event)) & set(vars(plan))},
        expected_batch_size=8,
        gradient_mode="hooks",
    )


def test_a_private_round_without_constants_is_refused() -> None:
    task = order().model_copy(update={"dp_sgd": None})
    mode = PRIVACY_MODES["local"]
    with pytest.raises(PrivacyError, match="expected privacy constants in mode local, got none"):
        mode.event(task, RandomSource.fresh())
    with pytest.raises(PrivacyError, match="expected privacy constants in mode local, got none"):
        trained(task)


# How it trains


def test_a_private_round_is_private_training_of_its_plan() -> None:
    weights, executed = trained(order())
    assert torch.equal(weights, train(tiny_model(), TinyData.make(20), _plan(order())))
    assert executed == [4]
    start = flat(tiny_model())
    silent, _ = trained(order(), kind=SilentTask())
    assert float((silent - start).abs().max()) > 0.001  # the noise is on


def test_a_private_round_takes_pull_and_schedule_from_the_order() -> None:
    plain, _ = trained(order())
    pulled, _ = trained(order(proximal_mu=0.5))
    assert not torch.equal(plain, pulled)
    early, _ = trained(order(schedule="cosine"))
    late, _ = trained(order(schedule="cosine", server_round=3))
    start = flat(tiny_model())
    assert float((late - start).norm()) < 0.5 * float((early - start).norm())


def test_rounds_without_privacy_go_on_through_the_data_as_one_training() -> None:
    config = train_config(schedule="cosine", warmup_steps=2)
    one = tiny_model()
    for server_round in (1, 2, 3):
        _, executed = trained(
            order("none", server_round=server_round, schedule="cosine", warmup_steps=2), model=one
        )
        assert executed == [4]
    terms = order("none", schedule="cosine", warmup_steps=2)
    data, model = TinyData.make(20), tiny_model().train()
    optimizer = make_optimizer(model, config)
    run_steps(
        epoch_batches(20, 8, first_step=0, steps=12, seed=public_seed(terms.task_digest, "north")),
        data.fetch,
        PlainStepper(model, make_loss(TinyTask(), autocast="off"), optimizer, config),
        optimizer,
        config,
        first_step=0,
        total_steps=12,
    )
    assert torch.equal(flat(one), flat(model))


def test_sites_without_privacy_shuffle_differently_and_repeatably() -> None:
    assert torch.equal(trained(order("none"))[0], trained(order("none"))[0])
    assert not torch.equal(trained(order("none"))[0], trained(order("none", site="south"))[0])


def test_a_round_without_privacy_pulls() -> None:
    # Strongly: other terms have another digest, and with it other batches.
    plain, pulled = trained(order("none"))[0], trained(order("none", proximal_mu=5.0))[0]
    start = flat(tiny_model())
    assert float((pulled - start).norm()) < float((plain - start).norm())


def test_a_round_without_privacy_has_no_noise() -> None:
    weights, _ = trained(order("none"), kind=SilentTask())
    assert torch.equal(weights, flat(tiny_model()))


def test_a_round_without_privacy_needs_a_record() -> None:
    with pytest.raises(TrainingError, match="expected 1 record or more to train on, got none"):
        trained(order("none"), count=0)


def test_modes_are_those_of_the_configuration() -> None:
    assert set(PRIVACY_MODES) == {"local", "distributed", "none"}


# Steps over all sites


def test_a_step_over_all_sites_is_debited_as_its_event() -> None:
    task = distributed_order()
    mode = PRIVACY_MODES["distributed"]
    event = mode.event(task, RandomSource.fresh())
    assert event == distributed_event(task)
    assert event.private
    assert mode.event(task, known_source()) == NonPrivateEvent(
        "test-noise", distributed_event(task)
    )


def test_a_step_over_all_sites_gives_a_sum_and_leaves_the_model_alone() -> None:
    task, model, executed = distributed_order(), tiny_model(), list[int]()
    result = PRIVACY_MODES["distributed"].train(
        model,
        TinyTask(),
        TinyData.make(20),
        order=task,
        randomness=known_source(),
        executed=executed.append,
    )
    assert isinstance(result, ClippedSum)
    assert executed == [1]
    assert torch.equal(flat(model), flat(tiny_model()))


@pytest.mark.parametrize("mode", ["local", "none"])
def test_modes_that_train_in_place_give_no_sum(mode: str) -> None:
    model = tiny_model()
    result = PRIVACY_MODES[mode].train(
        model,
        TinyTask(),
        TinyData.make(20),
        order=order(mode),
        randomness=known_source(),
        executed=lambda _: None,
    )
    assert result is None
    assert not torch.equal(flat(model), flat(tiny_model()))


def test_a_step_over_all_sites_without_constants_or_an_aggregation_is_refused() -> None:
    mode = PRIVACY_MODES["distributed"]
    for missing in ({"dp_sgd": None}, {"aggregation": None}):
        with pytest.raises(PrivacyError, match="in mode distributed, got"):
            mode.event(distributed_order().model_copy(update=missing), RandomSource.fresh())
