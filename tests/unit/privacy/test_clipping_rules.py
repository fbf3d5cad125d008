"""Flat, per-layer and automatic clipping: what one example adds is bounded by the clip in each."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from core.errors import PrivacyError, UnsupportedLayerError
from core.tasks.interface import Batch
from core.train import make_loss
from privacy import clipping_rules
from privacy.clipping_rules import CLIPPING_RULES, clipping_factors
from privacy.gradient_modes import GRADIENT_MODES
from privacy.rehearsal import rehearse
from tests.support.clipped_sums import (
    SHAPES,
    clipped,
    distance,
    each_gradient,
    middle_clip,
    model_of,
    norm_of,
    oracle,
    plain_loss,
    random_batch,
)
from tests.support.private_training import flat, plan_of, tiny_model, train
from tests.support.tiny import TinyData, TinyTask, train_config

RULES = sorted(CLIPPING_RULES)
MODES = ["hooks", "one_backward"]
OTHER = {"flat": "automatic", "per_layer": "flat", "automatic": "flat"}


@settings(max_examples=40)
@given(
    shape=SHAPES,
    rule=st.sampled_from(["per_layer", "automatic"]),
    seed=st.integers(0, 99),
    count=st.integers(1, 5),
    length=st.integers(2, 12),
)
def test_clipped_sums_are_those_of_the_oracle(
    shape: dict[str, Any], rule: str, seed: int, count: int, length: int
) -> None:
    model, batch = model_of(**shape), random_batch(seed, count, length)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    expected = oracle(gradients, clip, rule)
    if norm_of(expected) < 1e-3:
        return  # every example is shorter than what it is to predict
    assert distance(clipped(model, batch, clip=clip, rule=rule), expected) < 1e-5
    assert distance(oracle(gradients, clip, OTHER[rule]), expected) > 1e-5 or clip < 1e-3
    if shape["bias"] or shape["norm"] == "rmsnorm":  # else Opacus refuses
        found = clipped(model, batch, clip=clip, mode="hooks", rule=rule)
        assert distance(found, expected) < 1e-5


@settings(max_examples=40)
@given(
    shape=SHAPES,
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 99),
    count=st.integers(2, 5),
    length=st.integers(2, 12),
    clip=st.sampled_from([1e-2, 1.0, 100.0]),
)
def test_an_example_more_or_less_moves_the_sum_by_at_most_the_clip(
    shape: dict[str, Any], rule: str, seed: int, count: int, length: int, clip: float
) -> None:
    model, batch = model_of(**shape), random_batch(seed, count, length)
    tight = clip * (1 - GRADIENT_MODES["one_backward"].slack(train_config()))
    longest = int(batch.attention_mask[1:].sum(dim=1).max())  # padding changes as well
    kept = [t[1:, :longest] for t in (batch.tokens, batch.attention_mask)]
    everyone = clipped(model, batch, clip=tight, rule=rule)
    others = clipped(model, Batch(*kept, batch.labels[1:]), clip=tight, rule=rule)
    assert norm_of({n: everyone[n].double() - others[n].double() for n in others}) <= clip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", RULES)
def test_the_bound_is_nearly_reached(mode: str, rule: str) -> None:
    """Else the test above would pass for sums that are far too small."""
    model, batch = model_of(bias=True), random_batch(1, 1, 8)
    found = clipped(model, batch, clip=1e-3, mode=mode, rule=rule)
    (gradient,) = each_gradient(model, batch)
    # some parameters may have shorter gradients than their share; an unused position has none
    assert min(0.98, norm_of(gradient)) * 1e-3 < norm_of(found) * (1.1 if rule != "flat" else 1)
    assert norm_of(found) <= 1e-3 * (1 + 1e-5)


def test_per_layer_bounds_each_parameter_by_its_share() -> None:
    model, batch = model_of(bias=True), random_batch(1, 1, 8)
    found = clipped(model, batch, clip=1e-3, rule="per_layer")
    share = 1e-3 / math.sqrt(len(found))
    norms = [norm_of({name: total}) for name, total in found.items()]
    assert all(norm <= share * (1 + 1e-5) for norm in norms)
    assert sum(norm > share * 0.99 for norm in norms) > len(norms) / 2


def test_a_shared_weight_is_one_of_the_parameters() -> None:
    tied, batch = model_of(tied=True), random_batch(1, 1, 8)
    found = clipped(tied, batch, clip=1e-3, rule="per_layer")
    name = "transformer.token_embedding.weight"
    norm = norm_of({name: found[name]})
    assert norm == pytest.approx(1e-3 / math.sqrt(len(found)), rel=1e-2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", RULES)
def test_an_example_without_a_finite_norm_adds_nothing_to_any_parameter(
    mode: str, rule: str
) -> None:
    model, batch = model_of(bias=True), random_batch(2, 4, 7)

    def poisoned(model: nn.Module, batch: Batch) -> Tensor:
        losses = plain_loss(model, batch)
        return torch.cat([losses[:2], losses[2:3] * math.inf, losses[3:]])

    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    found = clipped(model, batch, clip=clip, loss=poisoned, mode=mode, rule=rule)
    assert distance(found, oracle([*gradients[:2], gradients[3]], clip, rule)) < 1e-5


@given(
    rule=st.sampled_from(RULES),
    norms=st.lists(
        st.one_of(st.floats(0, 2.0**80, width=32), st.just(math.inf), st.just(math.nan)),
        min_size=1,
        max_size=6,
    ),
    clip=st.sampled_from([1e-12, 1e-3, 1.0, 1e12]),
)
def test_factors_bound_any_norms(rule: str, norms: list[float], clip: float) -> None:
    squares = torch.tensor([norms]).T.square()  # one example, many parameters
    factors, finite = clipping_factors(rule, squares, clip)
    if not bool(finite):
        assert not factors.any()
        return
    added = (factors.double().square() * squares.double()).sum().sqrt()
    assert float(added) <= clip * (1 + 1e-5)


def test_a_finite_part_of_an_example_that_is_not_finite_is_left_out_as_well() -> None:
    factors, finite = clipping_factors("per_layer", torch.tensor([[1.0, 1.0], [math.inf, 4.0]]), 1)
    assert finite.tolist() == [False, True]
    assert factors[:, 0].tolist() == [0.0, 0.0]
    torch.testing.assert_close(factors[:, 1], torch.tensor([0.5**0.5, 0.5**1.5]))


# Through the engine


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", RULES)
def test_training_ends_where_both_modes_agree(mode: str, rule: str) -> None:
    def ended(mode: str, rule: str) -> Tensor:
        # above the norms: only what is normalised grows
        plan = plan_of(gradient_mode=mode, clipping=rule, max_grad_norm=4.0)
        return train(tiny_model(), TinyData.make(20), plan)

    found = ended(mode, rule)
    torch.testing.assert_close(found, ended("hooks", rule), atol=2e-3, rtol=1e-3)
    assert float((found - ended(mode, "flat" if rule == "automatic" else "automatic")).norm()) > 0.1


def test_ghost_clipping_refuses_other_rules_by_name() -> None:
    for rule in ("per_layer", "automatic"):
        with pytest.raises(PrivacyError, match=f"expected flat clipping with .*, got '{rule}'\nhi"):
            train(tiny_model(), TinyData.make(4), plan_of(gradient_mode="ghost", clipping=rule))


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(PrivacyError, match="expected a clipping of flat, per_layer, automatic, g"):
        plan_of(clipping="adaptive")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", RULES)
def test_the_rehearsal_passes_the_rule_and_finds_another(
    mode: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    before = flat(model)

    def rehearsed() -> None:
        config = train_config()
        loss = make_loss(TinyTask(), autocast="off")
        rehearse(model, TinyTask(), loss, GRADIENT_MODES[mode], config, clipping=rule)

    rehearsed()
    assert torch.equal(flat(model), before)
    optimizer = GRADIENT_MODES[mode].optimizer_class
    own = optimizer.__init__

    def other(self: Any, *arguments: Any, **options: Any) -> None:
        own(self, *arguments, **options | {"clipping": OTHER[rule]})

    monkeypatch.setattr(optimizer, "__init__", other)
    # flat and automatic differ by a hundredth alone on a gradient of norm 1
    with pytest.raises(UnsupportedLayerError, match="to be autograd's, scaled, got one"):
        rehearsed()


def test_a_rule_that_adds_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {"flat": lambda squares, clip: torch.full_like(squares, 2 * clip)}
    monkeypatch.setattr(clipping_rules, "CLIPPING_RULES", rules)
    loss = make_loss(TinyTask(), autocast="off")
    with pytest.raises(UnsupportedLayerError, match="expected the clipped gradient of a made-up"):
        rehearse(tiny_model(), TinyTask(), loss, GRADIENT_MODES["hooks"], train_config())
