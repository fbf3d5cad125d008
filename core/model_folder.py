"""The model that a run leaves: weights, tokenizer and how to build it, in one folder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from core.blueprint import Blueprint
from core.checkpoints import load_checkpoint, save_checkpoint
from core.config import FederationConfig, TokenizerSection
from core.config_sections import TaskSection
from core.digests import arrays_digest, canonical_json
from core.errors import CheckpointError, ConfigError
from core.lora import LoraConfig, add_lora
from core.model import ModelConfig
from core.parameters import load_arrays, to_arrays
from core.tasks.build import build_task
from core.tasks.interface import Task
from core.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_json

_LORA: Final[TypeAdapter[LoraConfig | None]] = TypeAdapter(LoraConfig | None)


@dataclass(frozen=True)
class LoadedModel:
    """A model as a run left it, ready for use."""

    model: nn.Module
    task: Task
    tokenizer: Tokenizer
    metadata: dict[str, Any]


def save_model(
    folder: Path, model: nn.Module, config: FederationConfig, blueprint: Blueprint, *, run_id: str
) -> None:
    """Writes the model, wholly or not at all; a folder that holds this very model is left alone.

    Raises:
        CheckpointError: The folder holds another model, or the disk cannot be written.
    """
    weights = to_arrays(model, all_parameters=True)
    if folder.exists():
        if arrays_digest(dict(load_checkpoint(folder).arrays["model"])) != arrays_digest(weights):
            raise CheckpointError(
                f"expected no model in {folder}, got another one",
                hint="choose another --output",
            )
        return
    arrays: dict[str, dict[str, Any]] = {"model": weights}
    if config.tokenizer.path is not None:
        content = np.frombuffer(config.tokenizer.path.read_bytes(), dtype=np.uint8)
        arrays["tokenizer"] = {"json": content}
    metadata = {
        "run_id": run_id,
        "model": asdict(blueprint.config),
        "lora": _LORA.dump_python(blueprint.lora, mode="json"),
        "task": config.task.model_dump(mode="json"),
        "tokenizer": {"kind": config.tokenizer.kind, "digest": blueprint.tokenizer_digest},
    }
    save_checkpoint(folder, arrays, metadata)


def load_model(folder: Path) -> LoadedModel:
    """Reads what ``save_model`` wrote.

    Raises:
        CheckpointError: A file is missing or altered, or the tokenizer is not the model's.
    """
    checkpoint = load_checkpoint(folder)
    try:
        # By way of JSON: strict mode then takes arrays for tuples.
        model_config = TypeAdapter(ModelConfig).validate_json(
            canonical_json(checkpoint.metadata["model"])
        )
        task_section = TaskSection.model_validate_json(canonical_json(checkpoint.metadata["task"]))
        lora = _LORA.validate_json(canonical_json(checkpoint.metadata.get("lora")))
        kind, digest = (checkpoint.metadata["tokenizer"][key] for key in ("kind", "digest"))
        weights = dict(checkpoint.arrays["model"])
    except (ValidationError, ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"expected a model that a run left in {folder}, got none") from error
    if kind == "file":
        content = np.asarray(checkpoint.arrays["tokenizer"]["json"]).tobytes()
        tokenizer = tokenizer_from_json(content, origin=str(folder))
    else:
        tokenizer = load_tokenizer(TokenizerSection(kind=kind))
    if tokenizer.digest() != digest:
        raise CheckpointError(f"expected the tokenizer {digest} in {folder}, got another")
    task = build_task(task_section, tokenizer, model_config.max_seq_len)
    model = task.build_model(model_config)
    if lora is not None:
        add_lora(model, lora, torch.Generator().manual_seed(0))
    load_arrays(model, weights, all_parameters=True)
    return LoadedModel(model, task, tokenizer, dict(checkpoint.metadata))
