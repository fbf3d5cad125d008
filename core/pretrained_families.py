"""The checkpoints that can be read: how BERT, GPT-2 and Llama say what they are and name it.

Source: the file formats of Hugging Face transformers 4 and 5; the defaults of settings that a
``config.json`` leaves out are those of its ``BertConfig``, ``GPT2Config`` and ``LlamaConfig``.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from core.errors import CheckpointError
from core.model import ModelConfig

# What this Transformer calls the activations of the checkpoints.
_GELUS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


class Settings:
    """``config.json``, read with its types checked."""

    def __init__(self, document: Mapping[str, Any], origin: Path) -> None:
        self.document = document
        self.origin = origin

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer; without a default, it must stand there."""
        value = self._get(key, default)
        if type(value) is not int:
            raise self._misfit(key, "an integer", value)
        return value

    def number(self, key: str, default: float) -> float:
        """A number."""
        value = self._get(key, default)
        if type(value) not in (int, float):
            raise self._misfit(key, "a number", value)
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        """A string; without a default, it must stand there."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._misfit(key, "a string", value)
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._misfit(key, "true or false", value)
        return value

    def require(self, key: str, *allowed: Any) -> None:
        """Refuses a setting that changes what is computed; the first is the format's default."""
        if self.document.get(key, allowed[0]) not in allowed:
            raise self.unsupported(key, f"{key} = {json.dumps(allowed[0])}")

    def unsupported(self, key: str, expected: str) -> CheckpointError:
        """The error for a setting that this Transformer cannot express."""
        return CheckpointError(
            f"expected {expected} in {self.origin}, got {key} = {self.document.get(key)!r}",
            hint="this Transformer cannot express that checkpoint: use another one",
        )

    def _get(self, key: str, default: Any) -> Any:
        value = self.document.get(key)
        return default if value is None else value

    def _misfit(self, key: str, expected: str, value: Any) -> CheckpointError:
        got = "nothing" if value is None else repr(value)
        return CheckpointError(
            f"expected {key} as {expected} in {self.origin}, got {got}",
            hint="copy the checkpoint again, with its config.json",
        )


def _bert_config(settings: Settings) -> ModelConfig:
    settings.require("position_embedding_type", "absolute", None)
    settings.require("is_decoder", False)
    settings.require("add_cross_attention", False)
    return ModelConfig(
        vocab_size=settings.integer("vocab_size"),
        max_seq_len=settings.integer("max_position_embeddings"),
        n_layer=settings.integer("num_hidden_layers"),
        n_head=settings.integer("num_attention_heads"),
        n_embd=settings.integer("hidden_size"),
        n_ff=settings.integer("intermediate_size"),
        causal=False,
        position="learned",
        norm="layernorm",
        norm_placement="post",
        norm_eps=settings.number("layer_norm_eps", 1e-12),
        embedding_norm=True,
        activation=_gelu(settings, "hidden_act", "gelu"),
        bias=True,
        n_token_type=settings.integer("type_vocab_size", 2),
    )


def _gpt2_config(settings: Settings) -> ModelConfig:
    settings.require("scale_attn_weights", True)
    settings.require("scale_attn_by_inverse_layer_idx", False)
    settings.require("add_cross_attention", False)
    width = settings.integer("n_embd")
    return ModelConfig(
        vocab_size=settings.integer("vocab_size"),
        max_seq_len=settings.integer("n_positions"),
        n_layer=settings.integer("n_layer"),
        n_head=settings.integer("n_head"),
        n_embd=width,
        n_ff=settings.integer("n_inner", 4 * width),
        position="learned",
        norm="layernorm",
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        activation=_gelu(settings, "activation_function", "gelu_new"),
        bias=True,
        tied=settings.flag("tie_word_embeddings", True),
    )


def _llama_config(settings: Settings) -> ModelConfig:
    settings.require("hidden_act", "silu")
    settings.require("attention_bias", False)
    settings.require("mlp_bias", False)
    settings.require("rope_scaling", None)
    heads = settings.integer("num_attention_heads")
    width = settings.integer("hidden_size")
    if settings.integer("head_dim", 0) * heads not in (0, width):
        raise settings.unsupported("head_dim", "head_dim = hidden_size / num_attention_heads")
    return ModelConfig(
        vocab_size=settings.integer("vocab_size"),
        max_seq_len=settings.integer("max_position_embeddings"),
        n_layer=settings.integer("num_hidden_layers"),
        n_head=heads,
        n_embd=width,
        n_kv_head=settings.integer("num_key_value_heads", heads),
        n_ff=settings.integer("intermediate_size"),
        position="rotary",
        rope_theta=_rope_theta(settings),
        norm="rmsnorm",
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        activation="swiglu",
        tied=settings.flag("tie_word_embeddings", False),
    )


def _gelu(settings: Settings, key: str, default: str) -> Any:
    name = _GELUS.get(settings.text(key, default))
    if name is None:
        raise settings.unsupported(key, f"an activation of {', '.join(_GELUS)}")
    return name


def _rope_theta(settings: Settings) -> float:
    """``rope_theta`` of transformers 4, or ``rope_parameters`` of transformers 5."""
    rope = settings.document.get("rope_parameters")
    if rope is None:
        return settings.number("rope_theta", 10_000.0)
    if (
        not isinstance(rope, dict)
        or not rope.keys() <= {"rope_type", "rope_theta", "partial_rotary_factor"}
        or rope.get("rope_type", "default") != "default"
        or rope.get("partial_rotary_factor", 1.0) != 1.0
    ):
        raise settings.unsupported("rope_parameters", "rotary positions without scaling")
    outer = settings.number("rope_theta", 10_000.0)
    return Settings(rope, settings.origin).number("rope_theta", outer)


@dataclass(frozen=True)
class Family:
    """How one kind of checkpoint is read."""

    config: Callable[[Settings], ModelConfig]
    prefix: str
    """Before the names of the base model, in files saved with a head."""
    names: Mapping[str, str]
    """This Transformer's layers and the checkpoint's; ``{i}`` is the block."""
    ignored: re.Pattern[str]
    """Weights that this Transformer does not use."""
    prepare: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    """Brings the tensors into the form of ``nn.Linear``."""

    def source(self, name: str) -> str:
        """The checkpoint's name of a weight of ``Transformer``."""
        layer, _, kind = name.rpartition(".")
        block = re.match(r"blocks\.(\d+)\.", layer)
        index = block[1] if block else ""
        pattern = layer.replace(f".{index}.", ".{i}.", 1) if block else layer
        return f"{self.names[pattern].replace('{i}', index)}.{kind}"


def _split_fused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2: Conv1D holds (in, out) where Linear holds (out, in); q, k and v are one layer."""
    result = {}
    for name, tensor in tensors.items():
        if re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", name):
            tensor = tensor.t() if tensor.dim() == 2 else tensor
        if ".attn.c_attn." not in name or tensor.dim() == 0:
            result[name] = tensor
            continue
        for part, third in zip("qkv", tensor.tensor_split(3), strict=True):
            result[name.replace("c_attn", f"c_attn:{part}")] = third
    return result


FAMILIES: Mapping[str, Family] = {
    "bert": Family(
        config=_bert_config,
        prefix="bert.",
        names={
            "token_embedding": "embeddings.word_embeddings",
            "position_embedding": "embeddings.position_embeddings",
            "token_type_embedding": "embeddings.token_type_embeddings",
            "embedding_norm": "embeddings.LayerNorm",
            "blocks.{i}.attention.query": "encoder.layer.{i}.attention.self.query",
            "blocks.{i}.attention.key": "encoder.layer.{i}.attention.self.key",
            "blocks.{i}.attention.value": "encoder.layer.{i}.attention.self.value",
            "blocks.{i}.attention.output": "encoder.layer.{i}.attention.output.dense",
            "blocks.{i}.attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
            "blocks.{i}.feed_forward.up": "encoder.layer.{i}.intermediate.dense",
            "blocks.{i}.feed_forward.down": "encoder.layer.{i}.output.dense",
            "blocks.{i}.feed_forward_norm": "encoder.layer.{i}.output.LayerNorm",
        },
        ignored=re.compile(r"pooler\.dense\..*|cls\..*|embeddings\.position_ids"),
    ),
    "gpt2": Family(
        config=_gpt2_config,
        prefix="transformer.",
        names={
            "token_embedding": "wte",
            "position_embedding": "wpe",
            "blocks.{i}.attention_norm": "h.{i}.ln_1",
            "blocks.{i}.attention.query": "h.{i}.attn.c_attn:q",
            "blocks.{i}.attention.key": "h.{i}.attn.c_attn:k",
            "blocks.{i}.attention.value": "h.{i}.attn.c_attn:v",
            "blocks.{i}.attention.output": "h.{i}.attn.c_proj",
            "blocks.{i}.feed_forward_norm": "h.{i}.ln_2",
            "blocks.{i}.feed_forward.up": "h.{i}.mlp.c_fc",
            "blocks.{i}.feed_forward.down": "h.{i}.mlp.c_proj",
            "final_norm": "ln_f",
        },
        ignored=re.compile(r"h\.\d+\.attn\.(bias|masked_bias)"),
        prepare=_split_fused,
    ),
    "llama": Family(
        config=_llama_config,
        prefix="model.",
        names={
            "token_embedding": "embed_tokens",
            "blocks.{i}.attention_norm": "layers.{i}.input_layernorm",
            "blocks.{i}.attention.query": "layers.{i}.self_attn.q_proj",
            "blocks.{i}.attention.key": "layers.{i}.self_attn.k_proj",
            "blocks.{i}.attention.value": "layers.{i}.self_attn.v_proj",
            "blocks.{i}.attention.output": "layers.{i}.self_attn.o_proj",
            "blocks.{i}.feed_forward_norm": "layers.{i}.post_attention_layernorm",
            "blocks.{i}.feed_forward.gate": "layers.{i}.mlp.gate_proj",
            "blocks.{i}.feed_forward.up": "layers.{i}.mlp.up_proj",
            "blocks.{i}.feed_forward.down": "layers.{i}.mlp.down_proj",
            "final_norm": "norm",
        },
        ignored=re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
    ),
}
