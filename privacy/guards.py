"""Checks before DP-SGD begins: layers whose per-sample gradients are right, losses that keep apart.

Deliberately not checked here: the policy of the site (client) and its budget (ledger).
"""

from collections.abc import Collection
from typing import Final

import torch
from torch import nn

from core.errors import LossContractError, PrivacyError, UnsupportedLayerError
from core.tasks.interface import Example, Task
from core.train import Loss

SUPPORTED_LAYERS: Final = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm)
# Lengths differ on purpose: a loss divided by the batch's tokens shows only then. Token ids 0 to 2
# exist in every vocabulary.
PROBES: Final = (
    Example(tokens=(0, 1, 2, 1, 0, 2), label=0),
    Example(tokens=(2, 1, 0), label=1),
    Example(tokens=(1, 0, 0, 2), label=0),
)
_TOLERANCE: Final = 1e-4  # rounding in fp32 stays below 1e-5
_REDUCED: Final = ("tf32", "bf16")


def check_layers(model: nn.Module, further: Collection[type[nn.Module]] = ()) -> None:
    """Refuses what per-sample gradients are not known to be right for.

    Guarantees:
        After a return, each trained parameter belongs to a Linear, Embedding, LayerNorm or
        RMSNorm in a form that the gradient modes support, or to a layer of a further kind; and
        the model has no batch norm and no buffer, in which statistics over examples could hide.

    Args:
        model: The model.
        further: Kinds of layer that the gradient mode knows beside those.

    Raises:
        UnsupportedLayerError: Names the layer.
    """
    for name, module in model.named_modules():
        check_kind(name, type(module))
        if next(module.buffers(recurse=False), None) is not None:
            why = "it has buffers, which can carry one example's data"
            raise _unsupported(name, type(module), why)
        trained = {name for name, p in module.named_parameters(recurse=False) if p.requires_grad}
        if not trained:
            continue
        if type(module) in further:
            continue
        if type(module) not in SUPPORTED_LAYERS or trained - {"weight", "bias"}:
            why = "its trained parameters are not of a supported layer"
            raise _unsupported(name, type(module), why, further)
        if isinstance(module, nn.Embedding) and (
            module.padding_idx is not None
            or module.max_norm is not None
            or module.scale_grad_by_freq
            or module.sparse
        ):
            why = "padding_idx, max_norm, frequency scaling or sparse"
            raise _unsupported(name, type(module), why)


def check_kind(name: str, kind: type[nn.Module]) -> None:
    """Raises UnsupportedLayerError where a layer normalises over the batch, trained or not."""
    if issubclass(kind, nn.modules.batchnorm._BatchNorm):
        raise _unsupported(name, kind, "it mixes the examples of a batch")


def _unsupported(
    name: str, kind: type[nn.Module], why: str, further: Collection[type[nn.Module]] = ()
) -> UnsupportedLayerError:
    kinds = ", ".join(layer.__name__ for layer in (*SUPPORTED_LAYERS, *further))
    return UnsupportedLayerError(
        f"expected trained layers of kind {kinds}, got {name or 'the model'}: "
        f"{kind.__name__}; {why}",
        hint="freeze the layer (train.freeze), or replace it; "
        "privacy.one_backward.samplers adds kinds to that gradient mode",
    )


def check_arithmetic(device: torch.device) -> None:
    """Refuses settings of the process under which clipped sums would be rounded coarsely.

    Guarantees:
        After a return, products of fp32 matrices are computed in fp32, and what is outside the
        loss is outside mixed precision: sums keep to the clip within the slack of the mode.

    Raises:
        PrivacyError: Names the setting.
    """
    if torch.is_autocast_enabled(device.type):
        raise PrivacyError(
            "expected DP-SGD outside torch.autocast, got a call within it",
            hint='set train.autocast = "bf16" instead',
        )
    for name, backend in (
        ("torch.backends", torch.backends),
        ("torch.backends.cuda.matmul", torch.backends.cuda.matmul),
        ("torch.backends.mkldnn.matmul", torch.backends.mkldnn.matmul),  # type: ignore[attr-defined]
    ):
        if backend.fp32_precision in _REDUCED:
            raise PrivacyError(
                f"expected products in fp32, got {name}.fp32_precision = {backend.fp32_precision}",
                hint='call torch.set_float32_matmul_precision("highest")',
            )


@torch.no_grad()
def check_loss_contract(model: nn.Module, task: Task, loss: Loss) -> None:
    """Compares the losses of examples in a batch with those of each alone, on made-up tokens.

    Guarantees:
        A loss that is divided by the batch's tokens, a normalisation over the batch, and any
        other coupling that shows on three short examples is refused, also where it is there in
        training only, unless dropout hides it. Measured without such a check: sensitivity 6.8
        times the clip.

    Args:
        model: The model.
        task: Makes a batch of the made-up examples.
        loss: In fp32: mixed precision rounds more than what is looked for.

    Raises:
        LossContractError: The loss is not of shape (B,), or examples influence each other.
    """
    device = next(model.parameters()).device

    def losses(*examples: Example) -> torch.Tensor:
        values = loss(model, task.collate(examples).to(device))
        check_loss_shape(values, len(examples))
        return values

    before = model.training
    try:
        for training in (False, True):
            model.train(training)
            together = losses(*PROBES)
            if training and not _close(together, losses(*PROBES)):
                continue  # dropout: the same batch gives other losses
            alone = torch.cat([losses(one) for one in PROBES])
            if not _close(together, alone):
                raise LossContractError(
                    "expected each example's loss to be the same in a batch and alone, "
                    f"got {_rounded(together)} and {_rounded(alone)}",
                    hint="normalise each example's loss by its own tokens, never by the batch's",
                )
    finally:
        model.train(before)


def _close(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.allclose(left, right, rtol=_TOLERANCE, atol=_TOLERANCE)


def check_loss_shape(losses: torch.Tensor, num_examples: int) -> None:
    """Raises LossContractError unless there is one loss for each example."""
    if tuple(losses.shape) != (num_examples,):
        raise LossContractError(
            f"expected one loss per example, shape ({num_examples},), got {tuple(losses.shape)}",
            hint="return losses unreduced: reduction is a matter of clipping",
        )


def _rounded(losses: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in losses.tolist()]
