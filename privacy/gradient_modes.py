"""How the clipped sum of per-sample gradients is computed: hooks, ghost clipping, one backward.

A further mode implements ``GradientMode`` and is named in ``GRADIENT_MODES``.
"""

from typing import Any, ClassVar, Final, Protocol

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
    GradSampleModuleFastGradientClipping,
)
from opacus.grad_sample.linear import compute_linear_norm_sample
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import nn

from core.errors import PrivacyError, UnsupportedLayerError
from core.tasks.interface import Batch
from core.train import Loss, TrainConfig
from privacy.guards import check_loss_shape
from privacy.half_precision import check_half_precision
from privacy.one_backward.functional_mode import OneBackward
from privacy.optimizers import CalibratedNoise, GhostOptimizer, HooksOptimizer

# Clipping is to C (1 - slack) and noise is for C, so that rounding cannot exceed C.
_SLACK_FP32: Final = 2.0**-16
_SLACK_GHOST: Final = 2.0**-10  # its norms come from Gram products
_SLACK_BF16: Final = 2.0**-7  # measured: a clipped norm of up to 1.0034 C
# Of the norms of all terms of a Gram sum: the root of 256 roundings in fp32.
_GRAM_ROUNDING: Final = 2.0**-8


class GradientMode(Protocol):
    """What a gradient mode brings."""

    optimizer_class: type[CalibratedNoise]

    def check(self, model: nn.Module, config: TrainConfig, clipping: str = "flat") -> None:
        """Raises UnsupportedLayerError or PrivacyError where the mode would be wrong."""

    def further_layers(self) -> tuple[type[nn.Module], ...]:
        """Kinds of layer that the mode knows beside those of ``privacy.guards``."""

    def slack(self, config: TrainConfig) -> float:
        """How far below the sensitivity the clip must lie."""

    def wrap(self, model: nn.Module, clip: float) -> Any:
        """The model wrapped so that per-sample gradients or norms are computed."""

    def backward(self, module: Any, optimizer: CalibratedNoise, loss: Loss, batch: Batch) -> None:
        """Leaves a micro-batch's gradients where ``optimizer`` finds them."""

    def empty(self, optimizer: CalibratedNoise) -> None:
        """The same for a batch without examples."""


def _check_norms(model: nn.Module) -> None:
    for name, module in model.named_modules():
        trained = any(p.requires_grad for p in module.parameters(recurse=False))
        if isinstance(module, nn.LayerNorm) and trained and module.bias is None:
            raise UnsupportedLayerError(
                f"expected LayerNorm with a bias under Opacus, got {name or 'the model'}: "
                "LayerNorm without one",
                hint='set privacy.gradient_mode = "one_backward", or model.bias = true',
            )


class HooksMode:
    """Opacus' hooks: per-sample gradients of every layer are instantiated; tied weights exact."""

    optimizer_class: type[CalibratedNoise] = HooksOptimizer

    def check(self, model: nn.Module, config: TrainConfig, clipping: str = "flat") -> None:
        """Refuses what Opacus does not handle, and fp16 with several records at a time."""
        _check_norms(model)
        check_half_precision(config)

    def further_layers(self) -> tuple[type[nn.Module], ...]:
        """None: Opacus' others were not looked at."""
        return ()

    def slack(self, config: TrainConfig) -> float:
        """Of fp32, or of the rounded products of mixed precision; fp16 rounds less than bf16."""
        return _SLACK_FP32 if config.autocast == "off" else _SLACK_BF16

    def wrap(self, model: nn.Module, clip: float) -> Any:
        """Opacus' module."""
        return GradSampleModule(model, loss_reduction="sum")

    def backward(self, module: Any, optimizer: CalibratedNoise, loss: Loss, batch: Batch) -> None:
        """One forward and one backward pass.

        Raises:
            LossContractError: The loss is not (B,).
            PrivacyError: A trained parameter took no part, or saw another batch dimension.
        """
        losses = loss(module, batch)
        check_loss_shape(losses, len(batch))
        (losses * optimizer.loss_scale).sum().backward()  # type: ignore[no-untyped-call]
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                _check_samples(name, parameter.grad_sample, len(batch))
        # autograd's own gradients are unclipped: nothing may take them for a result
        for parameter in optimizer.params:
            parameter.grad = None

    def empty(self, optimizer: CalibratedNoise) -> None:
        """Per-sample gradients of no sample."""
        for parameter in optimizer.params:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))


def _check_samples(name: str, samples: Any, num_examples: int) -> None:
    if not isinstance(samples, torch.Tensor):
        raise PrivacyError(
            f"expected per-sample gradients of {name}, got none or several",
            hint="a trained parameter must take part in the loss; freeze it, or remove it",
        )
    if len(samples) != num_examples:
        raise PrivacyError(
            f"expected {num_examples} per-sample gradients of {name}, got {len(samples)}",
            hint="every layer must see the batch as its first dimension",
        )


class _NonFiniteSamplesError(Exception):
    """Carries which samples have a finite norm, out of Opacus' backward pass."""

    def __init__(self, finite: torch.Tensor) -> None:
        super().__init__()
        self.finite = finite


def _linear_norms(
    layer: nn.Linear, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    """Opacus' norms, raised by what rounding may have taken from them.

    A Gram norm is the root of a sum of terms of both signs. Where the terms of a sequence cancel,
    as weights that a coordinator chose can make them, that sum is rounding alone, often 0: the
    gradient, small beside its terms but not beside the clip, would go out unclipped.
    """
    norms: dict[nn.Parameter, torch.Tensor]
    norms = compute_linear_norm_sample(layer, activations, backprops)
    if backprops.dim() < 3:
        return norms  # one product: nothing cancels
    outer, inner = backprops.norm(dim=-1), activations[0].norm(dim=-1)
    terms = {layer.weight: (outer * inner).sum(dim=1), layer.bias: outer.sum(dim=1)}
    return {p: torch.hypot(norm, _GRAM_ROUNDING * terms[p]) for p, norm in norms.items()}


class _GuardedGhostModule(GradSampleModuleFastGradientClipping):  # type: ignore[misc]
    """Opacus' ghost module that checks the norms before they become factors."""

    NORM_SAMPLERS: ClassVar[dict[type[nn.Module], Any]] = {
        **GradSampleModuleFastGradientClipping.NORM_SAMPLERS,
        nn.Linear: _linear_norms,
    }

    def get_clipping_coef(self) -> torch.Tensor:
        """Factors; raises where a norm is missing or not finite."""
        for name, parameter in self._module.named_parameters():
            if parameter.requires_grad and not hasattr(parameter, "_norm_sample"):
                _check_samples(name, None, 0)
        norms = self.get_norm_sample()
        finite = torch.isfinite(norms)
        if not finite.all():
            raise _NonFiniteSamplesError(finite)
        factors: torch.Tensor = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
        return factors


class GhostMode:
    """Opacus' ghost clipping: norms without per-sample gradients, two backward passes.

    Not guaranteed: that both passes round alike. Weights under which a gradient is 1e-6 of the
    terms that it is made of can take it past the clip; ``HooksMode`` clips what it sums.
    """

    optimizer_class: type[CalibratedNoise] = GhostOptimizer

    def check(self, model: nn.Module, config: TrainConfig, clipping: str = "flat") -> None:
        """Refuses what ghost clipping gets wrong: tied weights, mixed precision, other rules."""
        _check_norms(model)
        if clipping != "flat":
            raise PrivacyError(
                f"expected flat clipping with ghost clipping, as in Opacus, got {clipping!r}",
                hint='set privacy.gradient_mode = "one_backward", or privacy.clipping = "flat"',
            )
        uses = [p for _, p in model.named_parameters(remove_duplicate=False)]
        if len({id(p) for p in uses}) != len(uses):
            raise UnsupportedLayerError(
                "expected untied weights with ghost clipping, got a tied one",
                hint='set privacy.gradient_mode = "hooks", or model.tied = false',
            )
        if config.autocast != "off":
            raise PrivacyError(
                "expected fp32 with ghost clipping, got mixed precision: the norms would not be "
                "those of the summed gradients",
                hint='set privacy.gradient_mode = "hooks", or train.autocast = "off"',
            )

    def further_layers(self) -> tuple[type[nn.Module], ...]:
        """None: Opacus' others were not looked at."""
        return ()

    def slack(self, config: TrainConfig) -> float:
        """Of norms from Gram products in fp32."""
        return _SLACK_GHOST

    def wrap(self, model: nn.Module, clip: float) -> Any:
        """Opacus' module, guarded."""
        return _GuardedGhostModule(model, loss_reduction="sum", max_grad_norm=clip)

    def backward(self, module: Any, optimizer: CalibratedNoise, loss: Loss, batch: Batch) -> None:
        """Two backward passes; examples without a finite norm are left out and it starts again."""
        for parameter in optimizer.params:
            if hasattr(parameter, "_norm_sample"):  # of the micro-batch before
                del parameter._norm_sample
        losses = loss(module, batch)
        check_loss_shape(losses, len(batch))
        try:
            DPTensorFastGradientClipping(module, optimizer, losses, "sum").backward()
        except _NonFiniteSamplesError as error:
            module.enable_hooks()
            if error.finite.any():
                self.backward(module, optimizer, loss, _only(batch, error.finite))
            else:
                self.empty(optimizer)

    def empty(self, optimizer: CalibratedNoise) -> None:
        """A sum over no sample."""
        for parameter in optimizer.params:
            parameter.grad = torch.zeros_like(parameter)


def _only(batch: Batch, chosen: torch.Tensor) -> Batch:
    return Batch(batch.tokens[chosen], batch.attention_mask[chosen], batch.labels[chosen])


GRADIENT_MODES: Final[dict[str, GradientMode]] = {
    "hooks": HooksMode(),
    "ghost": GhostMode(),
    "one_backward": OneBackward(),
}
