"""The Transformer: configuration, masks, heads, and what per-sample clipping needs of it."""

import copy
import itertools
from collections import Counter
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from core.errors import ConfigError
from core.model import (
    Classifier,
    LanguageModel,
    ModelConfig,
    Transformer,
    init_weights,
    rotary_table,
    rotate,
    visible,
)

LLAMA = ModelConfig(vocab_size=17, max_seq_len=12, n_layer=2, n_head=4, n_embd=16, n_kv_head=2)
GPT2 = replace(
    LLAMA, n_kv_head=None, position="learned", norm="layernorm", activation="gelu_tanh", bias=True
)
BERT = replace(
    GPT2,
    causal=False,
    norm_placement="post",
    embedding_norm=True,
    activation="gelu",
    n_token_type=2,
)
CONFIGS = {
    "llama": LLAMA,
    "llama-untied": replace(LLAMA, tied=False),
    "one-kv-head": replace(LLAMA, n_kv_head=1),
    "gpt2": GPT2,
    "gpt2-untied": replace(GPT2, tied=False),
    "bert": BERT,
    "post-norm-decoder": replace(LLAMA, norm_placement="post", embedding_norm=True),
    "no-positions": replace(LLAMA, position="none", n_token_type=3),
    "encoder-rotary": replace(LLAMA, causal=False, bias=True),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


Model = TypeVar("Model", bound=nn.Module)


def batch(*lengths: int, length: int = 0, left: bool = False) -> tuple[Tensor, Tensor]:
    """Random tokens, also where padding stands, and the mask."""
    length = length or max(lengths)
    tokens = torch.randint(17, (len(lengths), length), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    return tokens, mask.flip(1) if left else mask


def loud(model: Model, seed: int = 5) -> Model:
    """The model in fp64 with large weights, so that a small mistake makes a large difference."""
    init_weights(model, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.double()


# Configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, r"expected model.vocab_size of at least 1, got 0"),
        ({"max_seq_len": 0}, r"expected model.max_seq_len of at least 1, got 0"),
        ({"n_layer": 0}, r"expected model.n_layer of at least 1, got 0"),
        ({"n_head": 0}, r"expected model.n_head of at least 1, got 0"),
        ({"n_embd": -16}, r"expected model.n_embd of at least 1, got -16"),
        ({"n_kv_head": 0}, r"expected model.n_kv_head of at least 1 or none, got 0"),
        ({"n_ff": 0}, r"expected model.n_ff of at least 1 or none, got 0"),
        ({"n_token_type": -1}, r"expected model.n_token_type of at least 0, got -1"),
        ({"norm_eps": 0.0}, r"expected model.norm_eps above 0 and finite, got 0.0"),
        ({"norm_eps": float("nan")}, r"expected model.norm_eps above 0 and finite, got nan"),
        ({"rope_theta": float("inf")}, r"expected model.rope_theta above 0 and finite, got inf"),
        ({"dropout": 1.0}, r"expected model.dropout in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"expected model.dropout in \[0, 1\), got -0.1"),
        ({"n_embd": 18}, r"expected model.n_embd as a multiple of n_head = 4, got 18"),
        ({"n_kv_head": 3}, r"expected model.n_kv_head as a divisor of n_head = 4, got 3"),
        ({"n_embd": 12}, r"expected an even head width .* for rotary positions, got 3"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        replace(LLAMA, **changes)
    assert caught.value.hint


def test_an_odd_head_width_is_fine_without_rotary_positions() -> None:
    assert replace(LLAMA, n_embd=12, position="learned").head_dim == 3


def test_the_feed_forward_width_follows_the_activation() -> None:
    assert LLAMA.ff_width == 8 * 16 // 3
    assert GPT2.ff_width == 64
    assert replace(GPT2, n_ff=10).ff_width == 10


# Weights


@every_config
def test_equal_seeds_give_equal_weights(config: ModelConfig) -> None:
    first, second, other = (LanguageModel(config) for _ in range(3))
    for model, seed in ((first, 7), (second, 7), (other, 8)):
        init_weights(model, torch.Generator().manual_seed(seed))
    pairs = zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True)
    for (name, one), same, different in pairs:
        assert torch.equal(one, same), name
        assert torch.equal(one, different) == (one.dim() == 1), name


def test_the_global_generator_is_neither_read_nor_advanced() -> None:
    models = []
    with torch.random.fork_rng():
        for global_seed in (1, 2):
            torch.manual_seed(global_seed)
            before = torch.get_rng_state()
            models.append(LanguageModel(LLAMA))
            init_weights(Classifier(BERT, 3, "mean"), torch.Generator().manual_seed(0))
            assert torch.equal(torch.get_rng_state(), before)
    for one, same in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, same)


def test_the_weights_have_the_spread_of_the_table() -> None:
    model = LanguageModel(replace(GPT2, n_embd=128, vocab_size=500, tied=False))
    init_weights(model, torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        layer = name.removesuffix(".weight")
        if name.endswith(".bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert bool((parameter == 1).all()), name
        else:
            into_residual = layer.endswith((".attention.output", ".feed_forward.down"))
            spread = 0.02 / 2 if into_residual else 0.02
            assert parameter.std().item() == pytest.approx(spread, rel=0.1), name
    assert not torch.equal(model.head.weight, model.transformer.token_embedding.weight)


def test_the_names_of_the_weights_are_stable() -> None:
    block = {
        *(f"attention.{part}.weight" for part in ("query", "key", "value", "output")),
        *(f"feed_forward.{part}.weight" for part in ("gate", "up", "down")),
        "attention_norm.weight",
        "feed_forward_norm.weight",
    }
    body = {f"blocks.{i}.{name}" for i in range(2) for name in block}
    body |= {"token_embedding.weight", "final_norm.weight"}
    assert set(Transformer(LLAMA).state_dict()) == body
    whole = {f"transformer.{name}" for name in body} | {"head.weight"}
    assert set(LanguageModel(LLAMA).state_dict()) == whole
    assert set(dict(LanguageModel(LLAMA).named_parameters())) == whole - {"head.weight"}
    assert set(Classifier(LLAMA, 3, "mean").state_dict()) == whole | {"head.bias"}
    extra = set(Transformer(BERT).state_dict())
    assert {"position_embedding.weight", "token_type_embedding.weight"} < extra
    assert {"embedding_norm.bias", "blocks.1.attention.query.bias"} < extra
    assert not {name for name in extra if "gate" in name or "final_norm" in name}


def test_a_layer_norm_has_a_bias_only_where_the_configuration_says_so() -> None:
    model = Transformer(replace(GPT2, bias=False))
    assert not {name for name in model.state_dict() if name.endswith(".bias")}


def test_a_tied_head_is_the_embedding_also_in_a_copy() -> None:
    for model in (tied := LanguageModel(LLAMA), copy.deepcopy(tied)):
        assert model.head.weight is model.transformer.token_embedding.weight
    untied = LanguageModel(replace(LLAMA, tied=False))
    assert untied.head.weight is not untied.transformer.token_embedding.weight


# Masks


@pytest.mark.parametrize("causal", [True, False])
def test_each_token_sees_exactly_the_tokens_it_should(causal: bool) -> None:
    masks = torch.tensor(list(itertools.product([False, True], repeat=4)))
    for mask in [*masks.unsqueeze(1), masks]:
        seen = visible(mask, causal)
        square = torch.ones(4, 4, dtype=torch.bool)
        seen = (square.tril() if causal else square) if seen is None else seen
        seen = seen.expand(len(mask), 1, 4, 4)
        for example, query, key in itertools.product(range(len(mask)), range(4), range(4)):
            if mask[example, query]:
                wanted = bool(mask[example, key]) and (key <= query or not causal)
                assert bool(seen[example, 0, query, key]) == wanted
        assert seen.any(dim=-1).all()  # or softmax gives NaN


def test_no_mask_is_made_where_none_is_needed() -> None:
    full, right = batch(5, 5)[1], batch(5, 2, 0)[1]
    left = batch(5, 2, left=True)[1]
    assert visible(None, True) is None
    assert visible(full, True) is None
    assert visible(full, False) is None
    assert visible(right, True) is None
    assert visible(right, False) is not None
    assert visible(left, True) is not None


@every_config
def test_padding_on_the_right_changes_nothing(config: ModelConfig) -> None:
    model = loud(Transformer(config))
    tokens, mask = batch(7, 3, 1, length=9)
    hidden = model(tokens, mask)
    for i, length in enumerate((7, 3, 1)):
        alone = model(tokens[i : i + 1, :length])
        torch.testing.assert_close(hidden[i, :length], alone[0])
    without_mask = model(tokens)
    if not config.causal:
        assert not torch.allclose(hidden[1, :3], without_mask[1, :3])


@pytest.mark.parametrize("name", ["llama", "no-positions", "encoder-rotary"])
def test_padding_on_the_left_changes_nothing_where_positions_are_relative(name: str) -> None:
    model = loud(Transformer(CONFIGS[name]))
    tokens, mask = batch(7, 3, 1, length=9, left=True)
    hidden = model(tokens, mask)
    for i, length in enumerate((7, 3, 1)):
        alone = model(tokens[i : i + 1, -length:])
        # the angles are fp32
        torch.testing.assert_close(hidden[i, -length:], alone[0], rtol=1e-5, atol=1e-5)


@every_config
@pytest.mark.parametrize("left", [True, False])
def test_an_example_without_a_token_gives_no_nan(config: ModelConfig, left: bool) -> None:
    model = loud(Classifier(config, 3, "mean"))
    tokens, mask = batch(6, 2, 0, left=left)
    model(tokens, mask).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@every_config
def test_the_future_is_visible_to_an_encoder_only(config: ModelConfig) -> None:
    model = loud(Transformer(config))
    tokens, mask = batch(8)
    other = tokens.clone()
    other[0, 5] = (other[0, 5] + 1) % 17
    past, changed = model(tokens, mask)[0, :5], model(other, mask)[0, :5]
    assert torch.allclose(past, changed) == config.causal


# Parts


def test_rotary_scores_depend_on_the_distance_only() -> None:
    table = rotary_table(LLAMA, 12, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, LLAMA.head_dim, generator=generator).expand(
        2, 1, 1, 12, LLAMA.head_dim
    )
    scores = (rotate(query, table) @ rotate(key, table).transpose(-1, -2))[0, 0]
    for distance in range(-11, 12):
        line = scores.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line))
    assert scores.diagonal(3)[0] != pytest.approx(scores.diagonal(0)[0].item(), abs=1e-3)


def test_without_positions_an_encoder_does_not_see_the_order() -> None:
    order = torch.tensor([3, 0, 2, 1, 4])
    for position in ("none", "rotary", "learned"):
        model = loud(Transformer(replace(LLAMA, causal=False, position=position)))
        tokens, _ = batch(5)
        same = torch.allclose(model(tokens)[:, order], model(tokens[:, order]))
        assert same == (position == "none")


def test_grouped_heads_equal_full_heads_with_repeated_weights() -> None:
    grouped, full = loud(Transformer(LLAMA)), Transformer(replace(LLAMA, n_kv_head=4)).double()
    state = dict(grouped.state_dict())
    for name in state:
        if name.endswith(("attention.key.weight", "attention.value.weight")):
            heads = state[name].view(2, LLAMA.head_dim, -1)
            state[name] = heads.repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    tokens, mask = batch(7, 4)
    torch.testing.assert_close(full(tokens, mask), grouped(tokens, mask))


def test_token_types_enter_and_default_to_zero() -> None:
    model = loud(Transformer(BERT))
    tokens, mask = batch(6, 3)
    plain = model(tokens, mask)
    assert torch.equal(plain, model(tokens, mask, torch.zeros_like(tokens)))
    assert not torch.allclose(plain, model(tokens, mask, torch.ones_like(tokens)))


@pytest.mark.parametrize("left", [True, False])
def test_pooling_reads_tokens_only(left: bool) -> None:
    tokens, mask = batch(6, 3, 1, left=left)
    hidden = loud(Transformer(LLAMA))(tokens, mask)
    wanted = {
        "first": [h[m][0] for h, m in zip(hidden, mask, strict=True)],
        "last": [h[m][-1] for h, m in zip(hidden, mask, strict=True)],
        "mean": [h[m].mean(0) for h, m in zip(hidden, mask, strict=True)],
    }
    for pooling in ("first", "last", "mean"):
        model = loud(Classifier(LLAMA, 3, pooling))
        model.transformer.load_state_dict(loud(Transformer(LLAMA)).state_dict())
        pooled = torch.stack(wanted[pooling])
        torch.testing.assert_close(model(tokens, mask), model.head(pooled))


def test_a_classifier_takes_a_missing_mask_for_no_padding() -> None:
    tokens, mask = batch(5, 5)
    model = Classifier(BERT, 3, "mean")
    assert torch.equal(model(tokens), model(tokens, mask))


def test_dropout_works_in_training_only() -> None:
    model = Classifier(replace(LLAMA, dropout=0.5), 3, "mean")
    tokens, mask = batch(8, 5)
    assert not torch.equal(model(tokens, mask), model(tokens, mask))
    model.eval()
    assert torch.equal(model(tokens, mask), model(tokens, mask))


@every_config
def test_bf16_autocast_stays_near_fp32(config: ModelConfig) -> None:
    model = LanguageModel(config)
    tokens, mask = batch(8, 5, left=True)
    exact = model(tokens, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(tokens, mask)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough[mask].float(), exact[mask], rtol=0.05, atol=0.02)
    rough.float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_wrong_inputs_are_refused() -> None:
    model = Transformer(LLAMA)
    tokens, mask = batch(13)
    with pytest.raises(ConfigError, match="at most max_seq_len = 12 tokens, got 13"):
        model(tokens, mask)
    tokens, mask = batch(5)
    with pytest.raises(ValueError, match=r"attention_mask as bool \(1, 5\), got torch.int64"):
        model(tokens, mask.long())
    with pytest.raises(ValueError, match=r"as bool \(1, 5\), got torch.bool \(1, 4\)"):
        model(tokens, mask[:, :4])
    with pytest.raises(ValueError, match=r"got .* and n_token_type = 0"):
        model(tokens, mask, tokens)
    with pytest.raises(ValueError, match=r"expected token_types \(1, 5\) .* got \(5,\)"):
        Transformer(BERT)(tokens, mask, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ConfigError, match="expected at least 1 class, got 0"):
        Classifier(LLAMA, 0, "mean")


# What per-sample clipping needs


@every_config
def test_each_weight_is_in_a_known_layer_called_once_per_registration(config: ModelConfig) -> None:
    model = LanguageModel(config)
    calls: Counter[str] = Counter()

    def count(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] += 1
            assert inputs[0].shape[:2] == output.shape[:2] == (3, 5), name

        return hook

    owners = {name: m for name, m in model.named_modules() if [*m.parameters(recurse=False)]}
    for name, module in owners.items():
        assert type(module) in (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm), name
        module.register_forward_hook(count(name))
    model(*batch(5, 3, 1))
    assert calls == Counter(dict.fromkeys(owners, 1))
    assert not list(model.buffers())


def loss_per_example(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy, normalised by the example's own tokens; class 1 for a classifier."""
    logits = model(tokens, mask)
    if logits.dim() == 2:
        return F.cross_entropy(logits, torch.ones_like(tokens[:, 0]), reduction="none")
    losses = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
    return (losses * mask).sum(1) / mask.sum(1).clamp(min=1)


def hooked_gradients(model: nn.Module, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
    hooked = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    loss_per_example(hooked, tokens, mask).sum().backward()  # type: ignore[no-untyped-call]
    return {
        name.removeprefix("_module."): parameter.grad_sample
        for name, parameter in hooked.named_parameters()
    }


def worst_error(model: nn.Module, tokens: Tensor, mask: Tensor) -> float:
    """Largest difference between Opacus' hooks and autograd on one trimmed example at a time."""
    hooked = hooked_gradients(model, tokens, mask)
    worst = 0.0
    for i in range(len(tokens)):
        length = max(int(mask[i].sum()), 1)
        alone = loss_per_example(model, tokens[i : i + 1, :length], mask[i : i + 1, :length])
        gradients = torch.autograd.grad(alone.sum(), list(model.parameters()), allow_unused=True)
        for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
            wanted = torch.zeros_like(parameter) if gradient is None else gradient
            worst = max(worst, (hooked[name][i] - wanted).abs().max().item())
    return worst


# The second has B = T, where ids of shape (T,) go wrong without a word.
BATCHES = {"padded": (7, 4, 1), "as-many-as-tokens": (4, 2, 4, 3), "one": (6,)}


@every_config
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES.keys())
def test_per_sample_gradients_of_a_language_model(
    config: ModelConfig, lengths: tuple[int, ...]
) -> None:
    assert worst_error(loud(LanguageModel(config)), *batch(*lengths)) < 1e-12


@every_config
@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
def test_per_sample_gradients_of_a_classifier(config: ModelConfig, pooling: Any) -> None:
    assert worst_error(loud(Classifier(config, 3, pooling)), *batch(4, 2, 4, 3)) < 1e-12


def test_the_comparison_rejects_position_ids_without_a_batch_dimension() -> None:
    model = loud(LanguageModel(GPT2))

    def first_row(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0][0],)

    tokens, mask = batch(4, 2, 4, 3)
    healthy = model(tokens, mask)
    assert model.transformer.position_embedding is not None
    model.transformer.position_embedding.register_forward_pre_hook(first_row)
    torch.testing.assert_close(model(tokens, mask), healthy)
    assert worst_error(model, tokens, mask) > 1e-3


def test_the_comparison_rejects_a_head_that_the_hooks_do_not_see() -> None:
    class Bypassing(LanguageModel):
        def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            hidden = self.transformer(tokens, attention_mask)
            return F.linear(hidden, self.transformer.token_embedding.weight)

    assert worst_error(loud(Bypassing(LLAMA)), *batch(4, 2)) > 1e-3


@every_config
def test_an_empty_batch_goes_forward_and_backward(config: ModelConfig) -> None:
    tokens, mask = batch(5, 3)
    model = LanguageModel(config)
    logits = model(tokens[:0], mask[:0])
    assert logits.shape == (0, 5, 17)
    logits.sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())
    for pooling in ("first", "mean", "last"):
        classifier = Classifier(config, 3, pooling)
        hooked = hooked_gradients(classifier, tokens[:0], mask[:0])
        assert {gradient.shape[0] for gradient in hooked.values()} == {0}
