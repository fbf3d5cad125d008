"""Adapters: what they compute, what is trained, what travels, and what a run leaves."""

from typing import Any

import pytest
import torch
from torch import nn

from core.errors import ConfigError
from core.lora import LoraConfig, LoraLinear, add_lora
from core.model import LanguageModel, ModelConfig
from core.parameters import base_digest, to_arrays, trainable
from tests.support.tiny import TinyModel, train_config

SHAPE = ModelConfig(
    vocab_size=19, max_seq_len=16, n_layer=2, n_head=2, n_embd=8, bias=True, tied=True
)
LORA = LoraConfig(rank=3, alpha=6.0, targets=("query", "blocks.1.feed_forward.up", "head"))


def adapted(lora: LoraConfig = LORA, seed: int = 7) -> LanguageModel:
    model = LanguageModel(SHAPE)
    add_lora(model, lora, torch.Generator().manual_seed(seed))
    return model


def test_only_adapters_of_the_named_layers_are_trained_and_travel() -> None:
    layers = {
        "transformer.blocks.0.attention.query",
        "transformer.blocks.1.attention.query",
        "transformer.blocks.1.feed_forward.up",
        "head",
    }
    expected = {f"{layer}.lora_{side}.weight" for layer in layers for side in "ab"}
    model = adapted()
    assert set(trainable(model)) == set(to_arrays(model)) == expected
    assert model.head.lora_a.weight.shape == (3, 8)
    assert model.head.lora_b.weight.shape == (19, 3)


def test_a_frozen_weight_keeps_its_name_its_value_and_its_tie() -> None:
    plain, model = LanguageModel(SHAPE), adapted()
    arrays = to_arrays(model, all_parameters=True)
    for name, parameter in plain.named_parameters():
        assert torch.equal(torch.tensor(arrays[name]), parameter)
    assert model.head.weight is model.transformer.token_embedding.weight


def test_at_first_nothing_is_added_and_then_the_product() -> None:
    plain, model = LanguageModel(SHAPE), adapted()
    tokens = torch.randint(0, 19, (2, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(tokens), plain(tokens))
    layer = model.transformer.blocks[0].attention.query
    with torch.no_grad():
        layer.lora_b.weight.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(2))
    merged = layer.weight + layer.lora_b.weight @ layer.lora_a.weight * (6.0 / 3)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, merged, layer.bias))
    assert not torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_the_seed_decides_and_torchs_own_generator_does_not() -> None:
    torch.manual_seed(1)
    first = base_digest(adapted())
    torch.manual_seed(2)
    assert base_digest(adapted()) == first
    assert base_digest(adapted(seed=8)) != first
    spread = adapted(LoraConfig(rank=500, alpha=1.0, targets=("head",))).head.lora_a.weight
    assert float(spread.detach().std()) == pytest.approx((3 * 8) ** -0.5, rel=0.1)


def test_the_digest_covers_frozen_weights_and_adapters() -> None:
    digest = base_digest(adapted())
    for name in ("transformer.final_norm.weight", "head.lora_a.weight"):
        model = adapted()
        with torch.no_grad():
            model.get_parameter(name).add_(1e-3)
        assert base_digest(model) != digest


def test_a_layer_in_half_precision_keeps_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False).to(torch.bfloat16))
    add_lora(model, LoraConfig(rank=1, alpha=1.0, targets=("0",)), torch.Generator())
    assert isinstance(model[0], LoraLinear)
    assert model[0].lora_a.weight.dtype == torch.bfloat16
    assert model[0].bias is None


@pytest.mark.parametrize("target", ["quer", "attention", "token_embedding", "blocks.9.query", ""])
def test_a_target_that_fits_no_linear_layer_is_refused(target: str) -> None:
    model = TinyModel()
    with pytest.raises(ConfigError, match=f"to name Linear layers, got '{target}', which fits no"):
        add_lora(model, LoraConfig(rank=1, alpha=1.0, targets=("mix", target)), torch.Generator())
    assert len(trainable(model)) == len(list(model.parameters()))  # nothing was changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "expected train.lora.rank of 1 or more, got 0"),
        ({"alpha": 0.0}, "expected train.lora.alpha finite and positive, got 0.0"),
        ({"alpha": float("nan")}, "expected train.lora.alpha finite and positive, got nan"),
        ({"targets": ()}, "expected train.lora.targets as different names, got []"),
        ({"targets": ("a", "a")}, "expected train.lora.targets as different names, got ['a', 'a']"),
    ],
)
def test_values_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LoraConfig(**{"rank": 1, "alpha": 1.0, "targets": ("a",)} | change)
    assert caught.value.message == message


def test_freeze_and_adapters_do_not_go_together() -> None:
    train_config(lora=LORA)
    with pytest.raises(ConfigError, match="expected train.freeze only without train.lora"):
        train_config(lora=LORA, freeze=("embed.",))
