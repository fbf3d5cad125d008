"""Starting from a BERT, GPT-2 or Llama checkpoint: ``config.json`` and ``model.safetensors``.

Strict on purpose: a weight that is not understood, or a setting that this Transformer cannot
express, would otherwise give a model that computes something else without a word.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from core.errors import CheckpointError, ConfigError
from core.model import Classifier, LanguageModel, ModelConfig, Transformer
from core.pretrained_families import FAMILIES, Family, Settings

logger = logging.getLogger(__name__)

_HEAD = "lm_head.weight"


def load_pretrained(folder: Path, max_seq_len: int) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Reads a checkpoint folder.

    Dropout is 0 in the returned configuration, whatever the checkpoint was trained with.

    Guarantees:
        Every weight of the file is either in the result or on its family's list of ignored ones
        (poolers, buffers, pretraining heads, a head that equals the embedding); every weight of
        the ``Transformer`` comes from the file. Nothing is unpickled.

    Args:
        folder: Holds ``config.json`` and ``model.safetensors``.
        max_seq_len: Length of the result, at most the checkpoint's; learned positions are cut.

    Returns:
        The configuration, and fp32 weights under the names of ``Transformer``. Where the head is
        not tied and the file has one, it stands beside them as ``head.weight``, its name in
        ``LanguageModel``; ``load_weights`` puts both where they belong.

    Raises:
        CheckpointError: A file is missing or broken; a setting is not supported; a weight is
            unknown, missing or of the wrong shape; ``max_seq_len`` is beyond the checkpoint's.
    """
    settings = Settings(_read_json(folder / "config.json"), folder / "config.json")
    family = FAMILIES.get(settings.text("model_type"))
    if family is None:
        raise settings.unsupported("model_type", f"model_type as one of {', '.join(FAMILIES)}")
    config = _model_config(family, settings)
    if not 1 <= max_seq_len <= config.max_seq_len:
        raise CheckpointError(
            f"expected max_seq_len from 1 to {config.max_seq_len}, the length of the checkpoint "
            f"in {folder}, got {max_seq_len}",
            hint="set model.max_seq_len in that range",
        )
    path = folder / "model.safetensors"
    state = _rename(_read_safetensors(path), family, config, path)
    if (positions := state.get("position_embedding.weight")) is not None:
        state["position_embedding.weight"] = positions[:max_seq_len]
    weights = {name: _fp32(tensor) for name, tensor in state.items()}
    return replace(config, max_seq_len=max_seq_len), weights


def load_weights(model: LanguageModel | Classifier, weights: Mapping[str, Tensor]) -> None:
    """Copies what ``load_pretrained`` returned into a task's model.

    A classifier's head keeps its fresh weights, and a language-model head is not for it.

    Raises:
        CheckpointError: The weights are not those of the model's configuration, or a language
            model with its own head finds none.
    """
    own_head = isinstance(model, LanguageModel) and not model.transformer.config.tied
    if own_head and "head.weight" not in weights:
        raise CheckpointError(
            "expected head.weight, got a checkpoint of the Transformer alone",
            hint="use a checkpoint with its language-model head, or one with tied embeddings",
        )
    body = {name: tensor for name, tensor in weights.items() if name != "head.weight"}
    wanted = {name: tensor.shape for name, tensor in model.transformer.state_dict().items()}
    got = {name: tensor.shape for name, tensor in body.items()}
    if got != wanted:
        name = min(name for name, _ in got.items() ^ wanted.items())
        raise CheckpointError(
            f"expected {name} as the model has it, {_shape(wanted, name)}, got {_shape(got, name)}",
            hint="build the model from the configuration that load_pretrained returned",
        )
    model.transformer.load_state_dict(body)
    if own_head:
        model.head.load_state_dict({"weight": weights["head.weight"]})


def _shape(shapes: Mapping[str, torch.Size], name: str) -> str:
    return str(tuple(shapes[name])) if name in shapes else "nothing"


def _model_config(family: Family, settings: Settings) -> ModelConfig:
    settings.require("quantization_config", None)
    try:
        return family.config(settings)
    except ConfigError as error:
        raise CheckpointError(
            f"expected a usable model in {settings.origin}, got: {error.message}",
            hint="copy the checkpoint again, with its config.json",
        ) from error


def _rename(
    tensors: Mapping[str, Tensor], family: Family, config: ModelConfig, path: Path
) -> dict[str, Tensor]:
    """The weights under this Transformer's names, each of the expected shape; nothing left over."""
    left = family.prepare(_without_prefix(tensors, family.prefix, path))
    with torch.device("meta"):  # shapes only
        wanted = {name: tensor.shape for name, tensor in Transformer(config).state_dict().items()}
    state = {name: _take(left, family.source(name), wanted[name], path) for name in wanted}
    if _HEAD in left:
        head = _take(left, _HEAD, wanted["token_embedding.weight"], path)
        if not config.tied:
            state["head.weight"] = head
        elif not torch.equal(head, state["token_embedding.weight"]):
            raise CheckpointError(
                f"expected {_HEAD} in {path} to equal the token embedding, got another head",
                hint="tie_word_embeddings in config.json and the weights contradict each other",
            )
    unknown = sorted(name for name in left if not family.ignored.fullmatch(name))
    if unknown:
        raise CheckpointError(
            f"expected only weights that are understood in {path}, got {', '.join(unknown[:5])}"
            f" ({len(unknown)} in all)",
            hint="save the base model alone, without a head made for another task",
        )
    logger.info("%s: not used: %s", path, ", ".join(sorted(left)) or "nothing")
    return state


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
    short = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if len(short) != len(tensors):
        doubled = sorted(name for name in tensors if f"{prefix}{name}" in tensors)
        raise CheckpointError(
            f"expected each weight once in {path}, got {doubled[0]} with and without {prefix!r}",
            hint="save the checkpoint again",
        )
    return short


def _take(left: dict[str, Tensor], name: str, shape: torch.Size, path: Path) -> Tensor:
    tensor = left.pop(name, None)
    if tensor is None or not tensor.is_floating_point() or tensor.shape != shape:
        got = "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
        raise CheckpointError(
            f"expected {name} in {path} as floats {tuple(shape)}, got {got}",
            hint="config.json and model.safetensors must be of the same checkpoint",
        )
    return tensor


def _fp32(tensor: Tensor) -> Tensor:
    # A copy: the tensors that were read may share the file's memory.
    return tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"expected a configuration at {path}, got: {error.strerror}",
            hint="give the folder that holds config.json and model.safetensors",
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"expected JSON in {path}, got: {error}", hint="copy the checkpoint again"
        ) from error
    if not isinstance(document, dict):
        raise CheckpointError(
            f"expected an object in {path}, got {type(document).__name__}",
            hint="copy the checkpoint again",
        )
    return document


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(
            f"expected weights at {path}, got no such file",
            hint="one model.safetensors is read; convert shards or pytorch_model.bin first",
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"expected whole safetensors in {path}, got: {error}",
            hint="the file is truncated or altered: copy the checkpoint again",
        ) from error
