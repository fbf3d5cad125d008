"""Low-rank adapters: every weight of the model is frozen, and small ones beside it are trained.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from core.errors import ConfigError


@dataclass(frozen=True)
class LoraConfig:
    """Which layers get an adapter, and of what size."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "strict": True,
        "extra": "forbid",
        "allow_inf_nan": False,
        "use_attribute_docstrings": True,
    }

    rank: int
    """Columns of an adapter's inner matrix."""
    alpha: float
    """What an adapter adds is multiplied with ``alpha / rank``."""
    targets: tuple[str, ...]
    """Linear layers by the end of their names, such as ``query`` or ``blocks.0.feed_forward.up``.
    Nothing else is trained: a new classifier's ``head`` belongs here as well."""

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of its range."""
        if self.rank < 1:
            raise ConfigError(f"expected train.lora.rank of 1 or more, got {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(
                f"expected train.lora.alpha finite and positive, got {self.alpha}",
                hint="twice the rank is a common choice",
            )
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ConfigError(
                f"expected train.lora.targets as different names, got {list(self.targets)}",
                hint='targets = ["query", "value"] is a common choice',
            )


class LoraLinear(nn.Linear):
    """A frozen Linear, under its own names, plus ``lora_b(lora_a(x)) * alpha / rank``."""

    def __init__(self, frozen: nn.Linear, config: LoraConfig) -> None:
        nn.Module.__init__(self)  # not Linear's: the weights are there already, perhaps tied
        self.in_features, self.out_features = frozen.in_features, frozen.out_features
        self.weight, self.bias = frozen.weight, frozen.bias
        options: dict[str, Any] = {"bias": False, "device": "meta", "dtype": frozen.weight.dtype}
        self.lora_a = nn.Linear(self.in_features, config.rank, **options)
        self.lora_b = nn.Linear(config.rank, self.out_features, **options)
        for adapter in (self.lora_a, self.lora_b):  # without a draw from torch's global generator
            adapter.to_empty(device=frozen.weight.device)
        self.scale = config.alpha / config.rank

    @torch.no_grad()
    def init_adapters(self, generator: torch.Generator) -> None:
        """Uniform of deviation ``(3 * in) ** -0.5`` and zero: at first nothing is added.

        Source: Hu et al. 2021's own code (loralib), which takes torch's bound for a Linear.
        """
        bound = 1 / math.sqrt(self.in_features)
        drawn = torch.empty(self.lora_a.weight.shape).uniform_(-bound, bound, generator=generator)
        self.lora_a.weight.copy_(drawn)
        self.lora_b.weight.zero_()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(B, ..., in) to (B, ..., out)."""
        adapted: Tensor = self.lora_b(self.lora_a(input))
        return super().forward(input) + self.scale * adapted


def add_lora(model: nn.Module, config: LoraConfig, generator: torch.Generator) -> None:
    """Freezes ``model`` and puts trained adapters on the Linear layers that ``config`` names.

    Guarantees:
        The model's own weights keep their names and values, and what it computes is unchanged.
        Only the adapters are trained, and so only they travel.

    Raises:
        ConfigError: A target fits no Linear layer; nothing was changed.
    """
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    chosen = {
        name: layer
        for name, layer in linear.items()
        if any(_fits(name, target) for target in config.targets)
    }
    for target in config.targets:
        if not any(_fits(name, target) for name in chosen):
            raise ConfigError(
                f"expected train.lora.targets to name Linear layers, got {target!r}, "
                "which fits none",
                hint=f"the model has {', '.join(list(linear)[:8])}, ...",
            )
    model.requires_grad_(False)
    for name, layer in chosen.items():
        adapted = LoraLinear(layer, config)
        adapted.init_adapters(generator)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, adapted)


def _fits(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)
