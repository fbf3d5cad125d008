"""From the federation's configuration to the tokenizer, task and model that every site builds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from core.config import FederationConfig, PretrainedModel
from core.config_sections import TaskSection
from core.errors import CheckpointError
from core.lora import LoraConfig, add_lora
from core.messages import TrainingTerms
from core.model import Classifier, LanguageModel, ModelConfig, init_weights
from core.parameters import base_digest, freeze
from core.pretrained import load_pretrained, load_weights
from core.tasks.build import build_task
from core.tasks.interface import Task
from core.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Blueprint:
    """All it takes to build the run's model, the same at the coordinator and at every site."""

    config: ModelConfig
    section: TaskSection
    task: Task
    seed: int
    frozen: tuple[str, ...]
    tokenizer_digest: str
    weights: Mapping[str, Tensor] | None = field(repr=False)
    lora: LoraConfig | None = None

    def build(self) -> nn.Module:
        """A model with the run's initial weights; equal at every call.

        Raises:
            ConfigError: The configuration does not fit the task, or ``freeze`` or a target of
                ``lora`` fits nothing.
            CheckpointError: The pretrained weights do not fit.
        """
        model = self.task.build_model(self.config)
        generator = torch.Generator().manual_seed(self.seed)
        init_weights(model, generator)
        if self.weights is not None:
            if not isinstance(model, LanguageModel | Classifier):
                raise CheckpointError(
                    "expected a task on our Transformer for a pretrained start, got "
                    f"{type(model).__name__}"
                )
            load_weights(model, self.weights)
        freeze(model, self.frozen)
        if self.lora is not None:
            add_lora(model, self.lora, generator)
        return model


def make_blueprint(config: FederationConfig) -> Blueprint:
    """Reads the tokenizer and, where the model is pretrained, its checkpoint."""
    tokenizer = load_tokenizer(config.tokenizer)
    weights: Mapping[str, Tensor] | None = None
    if isinstance(config.model, PretrainedModel):
        model_config, weights = load_pretrained(config.model.pretrained, config.model.max_seq_len)
    else:
        model_config = config.model
    return Blueprint(
        config=model_config,
        section=config.task,
        task=build_task(config.task, tokenizer, model_config.max_seq_len),
        seed=config.federation.seed,
        frozen=config.train.freeze,
        tokenizer_digest=tokenizer.digest(),
        weights=weights,
        lora=config.train.lora,
    )


def training_terms(config: FederationConfig, blueprint: Blueprint) -> TrainingTerms:
    """What is the same at every site and round, and what each site's people approve."""
    return TrainingTerms(
        federation=config.federation.name,
        model=blueprint.config,
        base_digest=base_digest(blueprint.build()),
        tokenizer_digest=blueprint.tokenizer_digest,
        task=config.task,
        train=config.train,
        privacy=config.privacy,
        proximal_mu=config.strategy.proximal_mu if config.strategy.name == "fedprox" else 0.0,
        num_rounds=config.federation.num_rounds,
        update_encoding=config.transport.update_encoding,
        secure_aggregation=config.secure_aggregation,
    )
