"""Models that use their weights behind the back of clipping are found out before the first step."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.errors import PrivacyError, UnsupportedLayerError
from core.train import make_loss
from privacy.gradient_modes import GRADIENT_MODES
from privacy.guards import check_layers, check_loss_contract
from privacy.rehearsal import rehearse
from tests.support.private_training import flat, plan_of, tiny_model, train
from tests.support.tiny import TinyData, TinyModel, TinyTask, train_config

MODES = sorted(GRADIENT_MODES)


class TiedByHand(TinyModel):
    """The head is a product written out: ghost clipping does not see that use of the weight."""

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        where = torch.arange(tokens.shape[1]).repeat(len(tokens), 1)
        hidden = self.norm(self.embed(tokens) + self.positions(where))
        logits: Tensor = self.head(hidden) + self.mix(hidden) @ self.embed.weight.T
        return logits


class CalledTwice(TinyModel):
    """A layer that is registered once and used twice."""

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        where = torch.arange(tokens.shape[1]).repeat(len(tokens), 1)
        hidden = self.norm(self.embed(tokens) + self.positions(where))
        logits: Tensor = self.head(self.mix(torch.tanh(self.mix(hidden))))
        return logits


class PositionsWithoutBatch(TinyModel):
    """Position ids of shape (T,): silently wrong where B == T."""

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.norm(self.embed(tokens) + self.positions(torch.arange(tokens.shape[1])))
        logits: Tensor = self.head(torch.tanh(self.mix(hidden)))
        return logits


def refusal(model: nn.Module, mode: str) -> str:
    """What training says; it must have changed nothing."""
    before = flat(model)
    check_layers(model)
    check_loss_contract(model, TinyTask(), make_loss(TinyTask(), autocast="off"))
    with pytest.raises(PrivacyError) as caught:
        train(model, TinyData.make(4), plan_of(gradient_mode=mode))
    assert torch.equal(flat(model), before)
    assert all(vars(p) == {} and p.grad is None for p in model.parameters())
    return str(caught.value)


@pytest.mark.parametrize("mode", MODES)
def test_a_weight_that_is_used_past_its_layer_is_found_out(mode: str) -> None:
    model = TiedByHand()
    model.load_state_dict(tiny_model().state_dict())
    message = refusal(model, mode)
    assert message.startswith(
        "expected every use of embed.weight to be recorded, got one past its layer"
        if mode == "one_backward"
        else "expected the clipped gradient of a made-up text to be autograd's, scaled, got one "
    )
    assert "hint: call every layer as a module" in message


@pytest.mark.parametrize("mode", MODES)
def test_positions_without_a_batch_dimension_are_found_out(mode: str) -> None:
    message = refusal(PositionsWithoutBatch(), mode)
    if mode == "ghost":
        assert message.startswith("expected layers that Opacus can clip")
    else:
        name = "positions.weight" if mode == "one_backward" else "_module.positions.weight"
        assert message.startswith(
            f"expected 1 per-sample gradients of {name}, got 6\nhint: every layer"
        )


def test_a_layer_that_is_called_twice_is_exact_with_hooks_and_refused_elsewhere() -> None:
    check(CalledTwice(), "hooks")
    assert refusal(CalledTwice(), "one_backward").startswith(
        "expected 1 uses of mix.weight, as often as it is registered, got 2\nhint: call each layer"
    )
    assert refusal(CalledTwice(), "ghost").startswith(
        "expected layers that Opacus can clip, got: Parameter tying is not supported"
    )


def test_a_layer_that_is_registered_twice_is_a_tied_one() -> None:
    model = CalledTwice()
    model.again = model.mix
    with pytest.raises(UnsupportedLayerError, match="expected untied weights with ghost clipping"):
        GRADIENT_MODES["ghost"].check(model, train_config())


def test_weights_that_are_not_finite_are_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.mix.weight[0, 0] = float("nan")
    with pytest.raises(PrivacyError, match="a finite gradient of a made-up text, got norm nan"):
        check(model, "hooks")


def check(model: nn.Module, mode: str, autocast: str = "off") -> None:
    rehearse(
        model,
        TinyTask(),
        make_loss(TinyTask(), autocast=autocast),
        GRADIENT_MODES[mode],
        train_config(autocast=autocast),
    )


@pytest.mark.parametrize("shape", [{}, {"tied": True}, {"classes": 2}, {"rms": True}])
@pytest.mark.parametrize(
    ("mode", "autocast"),
    [
        ("hooks", "off"),
        ("hooks", "bf16"),
        ("ghost", "off"),
        ("one_backward", "off"),
        ("one_backward", "bf16"),
        ("hooks", "fp16"),
        ("one_backward", "fp16"),
    ],
)
def test_good_models_pass_and_stay_as_they_were(
    shape: dict[str, Any], mode: str, autocast: str
) -> None:
    if mode == "ghost" and shape.get("tied"):
        pytest.skip("ghost clipping refuses tied weights")
    model = tiny_model(**shape).eval()
    before = flat(model)
    generator = torch.random.get_rng_state()
    check(model, mode, autocast)
    assert torch.equal(flat(model), before)
    assert not model.training
    assert all(vars(p) == {} and p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_dropout_is_the_same_in_both_runs() -> None:
    class Dropping(TinyModel):
        def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
            logits: Tensor = super().forward(tokens, attention_mask)
            return nn.functional.dropout(logits, 0.5, self.training)

    check(Dropping(), "hooks")
    check(Dropping(), "ghost")
    check(Dropping(), "one_backward")


def test_a_wrong_clip_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    mode = GRADIENT_MODES["hooks"]
    monkeypatch.setattr(type(mode), "slack", lambda self, config: 0.1)
    with pytest.raises(UnsupportedLayerError, match="got one that is 10.0% away"):
        check(tiny_model(), "hooks")


@pytest.mark.parametrize("mode", MODES)
def test_gradients_as_small_as_a_confident_models_are_judged_alike(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_loss(TinyTask(), autocast="off")

    def rehearsed() -> None:
        config = train_config(autocast="off")
        rehearse(
            tiny_model(),
            TinyTask(),
            lambda model, batch: plain(model, batch) * 1e-9,
            GRADIENT_MODES[mode],
            config,
        )

    rehearsed()
    monkeypatch.setattr(type(GRADIENT_MODES[mode]), "slack", lambda self, config: 0.1)
    with pytest.raises(UnsupportedLayerError, match="got one that is 10.0% away"):
        rehearsed()
