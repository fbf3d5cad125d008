"""What private training refuses, and what it leaves on the model."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.errors import LossContractError, PrivacyError, UnsupportedLayerError
from core.tasks.interface import Batch
from privacy.gradient_modes import GRADIENT_MODES
from tests.support.private_training import (
    Watched,
    flat,
    known_source,
    plan_of,
    tiny_model,
    train,
)
from tests.support.tiny import TinyData, TinyModel, TinyTask

MODES = sorted(GRADIENT_MODES)

# Refusals


@pytest.mark.parametrize("count", [0, 31])
def test_a_data_set_beyond_the_accounting_is_refused_without_telling_its_size(count: int) -> None:
    model = tiny_model()
    with pytest.raises(PrivacyError) as caught:
        train(model, TinyData.make(count), plan_of(max_examples=30))
    assert str(caught.value) == (
        "expected between 1 and 30 records, which the accounting covers; this site holds another "
        "number\nhint: declare a larger public num_examples for this site"
    )
    assert torch.equal(flat(model), flat(tiny_model()))


def test_an_unknown_layer_is_refused_before_the_first_step() -> None:
    model = tiny_model()
    model.norm.register_buffer("seen", torch.zeros(1))
    with pytest.raises(UnsupportedLayerError, match="got norm: LayerNorm; it has buffers"):
        train(model, TinyData.make(3), plan_of())
    assert torch.equal(flat(model), flat(tiny_model()))


def test_a_coupled_loss_is_refused_before_the_first_step() -> None:
    class Coupled(TinyTask):
        def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
            return super().loss_per_example(logits, batch) / len(batch)

    model = tiny_model()
    with pytest.raises(LossContractError, match="the same in a batch and alone"):
        train(model, TinyData.make(3), plan_of(), task=Coupled())
    assert torch.equal(flat(model), flat(tiny_model()))


NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[
            ({"noise_multiplier": bad}, "finite positive noise")
            for bad in (0.0, -1.0, NAN, math.inf)
        ],
        *[({"max_grad_norm": bad}, "finite positive noise") for bad in (0.0, NAN, math.inf)],
        *[({"max_grad_norm": bad}, "expected a clip between") for bad in (1e-40, 1e30)],
        *[({"sample_rate": bad}, "sampling rate") for bad in (0.0, 1.1, NAN)],
        *[({"steps": bad}, "sizes and steps of 1 or more") for bad in (0, -1, NAN)],
        ({"expected_batch_size": 0}, "sizes and steps of 1 or more"),
        ({"max_batch_size": 0}, "sizes and steps of 1 or more"),
        ({"max_examples": 0}, "sizes and steps of 1 or more"),
        (
            {"gradient_mode": "functorch"},
            "gradient mode of hooks, ghost, one_backward, got 'functorch'",
        ),
    ],
)
def test_a_plan_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        plan_of(**changes)


def test_a_used_source_is_refused_before_the_first_step() -> None:
    source = known_source()
    train(tiny_model(), TinyData.make(3), plan_of(), source=source)
    model = tiny_model()
    with pytest.raises(PrivacyError, match="'noise' was already used"):
        train(model, TinyData.make(3), plan_of(), source=source)
    assert torch.equal(flat(model), flat(tiny_model()))


def test_training_within_autocast_is_refused() -> None:
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(PrivacyError, match=r"outside torch\.autocast"),
    ):
        train(tiny_model(), TinyData.make(3), plan_of())


# What it leaves behind


def assert_clean(model: nn.Module) -> None:
    for parameter in model.parameters():
        assert parameter.grad is None
        assert vars(parameter) == {}
    fresh = {name: set(vars(module)) for name, module in TinyModel().named_modules()}
    for name, module in model.named_modules():
        assert set(vars(module)) - {"fail"} == fresh[name]
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


class FailingModel(TinyModel):
    """Fails in the middle of a chosen forward pass of training."""

    def __init__(self) -> None:
        super().__init__()
        self.fail = False

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = super().forward(tokens, attention_mask)
        if self.fail:
            raise MemoryError("no room")
        return logits


@pytest.mark.parametrize("mode", MODES)
def test_a_second_training_of_a_model_is_as_good_as_the_first(mode: str) -> None:
    data, plan = TinyData.make(10), plan_of(gradient_mode=mode)
    model = tiny_model()
    first = train(model, data, plan)
    assert_clean(model)
    model.load_state_dict(tiny_model().state_dict())
    assert torch.equal(train(model, data, plan), first)


@pytest.mark.parametrize("mode", MODES)
def test_an_error_within_a_step_leaves_nothing_of_the_records_on_the_model(mode: str) -> None:
    """The next round on the same model, another site's perhaps, begins clean."""
    model = FailingModel()
    model.load_state_dict(tiny_model().state_dict())
    data, plan = TinyData.make(10), plan_of(gradient_mode=mode, sample_rate=1.0)

    class Failing(Watched):
        def fetch(self, indices: Sequence[int]) -> Batch:
            batch = super().fetch(indices)
            model.fail = len(self.weights) == 6  # in the second step
            return batch

    with pytest.raises(MemoryError, match="no room"):
        train(model, Failing(model, 10), plan)
    assert_clean(model)
    model.fail = False
    model.load_state_dict(tiny_model().state_dict())
    assert torch.equal(train(model, data, plan), train(tiny_model(), data, plan))


def test_what_is_told_at_the_end_may_fail_and_the_model_is_clean_all_the_same() -> None:
    def full_disk(_: int) -> None:
        raise OSError("disk full")

    model = tiny_model()
    with pytest.raises(OSError, match="disk full"):
        train(model, TinyData.make(3), plan_of(), executed=full_disk)
    assert_clean(model)


def test_frozen_weights_stay() -> None:
    model = tiny_model()
    model.embed.weight.requires_grad_(False)
    before = model.embed.weight.detach().clone()
    train(model, TinyData.make(5), plan_of())
    assert torch.equal(model.embed.weight, before)
    assert vars(model.embed.weight) == {}
