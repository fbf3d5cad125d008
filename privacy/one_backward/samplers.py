"""Further kinds of layers for one backward pass, added as Opacus' ``register_grad_sampler`` adds.

    @register_sampler(nn.Conv1d)
    def compute_conv_sample(layer, activations, backprops):
        return {layer.weight: ..., layer.bias: ...}

Opacus' own functions for a layer fit as they are: ``register_sampler(nn.Conv1d)(f)``. Before the
first step, the clipped gradients of made-up examples are compared with autograd's over the whole
model: a gross mistake is found, one below ``privacy.rehearsal``'s tolerance is not.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from core.errors import PrivacyError, UnsupportedLayerError
from privacy.guards import SUPPORTED_LAYERS, check_kind
from privacy.one_backward.tape import Dense, Lookup, Product, Tape, Use, wide

Sampler = Callable[[Any, list[Tensor], Tensor], Mapping[nn.Parameter, Tensor | Use]]

SAMPLERS: Final[dict[type[nn.Module], Sampler]] = {}


def register_sampler(
    kinds: type[nn.Module] | Sequence[type[nn.Module]],
) -> Callable[[Sampler], Sampler]:
    """Lets layers of exactly these kinds be trained by one backward pass.

    Guarantees:
        The layer's own forward runs, and autograd computes its input's gradient alone. What the
        function gives is what is clipped: per-sample gradients that are missing, of another
        shape, or of another number of examples are refused by name.

    Args:
        kinds: One kind, or several; a kind that was registered before gets the new function.

    Returns:
        A decorator for ``f(layer, activations, backprops)``. Activations are the inputs of one
        call, backprops the gradient of its output, both with the example first and in fp32 at
        least. It gives for each trained parameter of the layer its per-sample gradients (B, ...)
        or, where those would be large, a ``Product`` or ``Lookup`` of the tape.

    Raises:
        UnsupportedLayerError: The kind is built in, or mixes the examples of a batch.
    """
    chosen = [kinds] if isinstance(kinds, type) else list(kinds)
    for kind in chosen:
        check_kind("", kind)
        if kind in SUPPORTED_LAYERS:
            raise UnsupportedLayerError(
                f"expected a kind of layer that is not built in, got {kind.__name__}"
            )

    def register(sampler: Sampler) -> Sampler:
        SAMPLERS.update(dict.fromkeys(chosen, sampler))
        return sampler

    return register


def sampled_forward(layer: nn.Module, sampler: Sampler, tape: Tape) -> Callable[..., Tensor]:
    """The forward of ``layer``; what ``sampler`` makes of its backward pass goes on ``tape``."""
    kind = type(layer).__name__

    def forward(*inputs: Any) -> Tensor:
        if not all(isinstance(one, Tensor) for one in inputs):
            raise UnsupportedLayerError(f"expected tensors as inputs of {kind}, got {inputs}")
        output = type(layer).forward(_without_gradients(layer), *inputs)
        if not isinstance(output, Tensor):
            raise UnsupportedLayerError(
                f"expected one tensor as output of {kind}, got {type(output).__name__}"
            )
        trained = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        constants = (layer, sampler, tape, len(inputs))
        recorded: Tensor = _Recorded.apply(output, *constants, *inputs, *trained)  # type: ignore[no-untyped-call]
        return recorded

    return forward


class _Recorded(torch.autograd.Function):
    """The identity; parameters are arguments only so that autograd runs the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, layer: nn.Module, sampler: Sampler, tape: Tape, *rest: Any
    ) -> Tensor:
        count, *tensors = rest
        ctx.layer, ctx.sampler, ctx.tape, ctx.rest = layer, sampler, tape, len(rest)
        ctx.save_for_backward(*tensors[:count])
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        activations = [wide(x.detach()) for x in ctx.saved_tensors]
        found = ctx.sampler(ctx.layer, activations, wide(g))
        for parameter, use in _uses(ctx.layer, found):
            ctx.tape.record(parameter, use)
        return g, *[None] * (3 + ctx.rest)


def _without_gradients(layer: nn.Module) -> nn.Module:
    """The same layer over the same weights, which autograd does not see."""
    twin = copy.copy(layer)
    vars(twin)["_parameters"] = {
        name: None if p is None else p.detach() for name, p in layer._parameters.items()
    }
    return twin


def _uses(
    layer: nn.Module, found: Mapping[nn.Parameter, Tensor | Use]
) -> list[tuple[nn.Parameter, Use]]:
    kind, names = type(layer).__name__, {p: name for name, p in layer.named_parameters()}
    uses: list[tuple[nn.Parameter, Use]] = []
    for parameter, given in found.items():
        if parameter not in names:
            raise PrivacyError(f"expected gradients of parameters of {kind}, got another's")
        if not parameter.requires_grad:
            continue
        use = Dense(wide(given)) if isinstance(given, Tensor) else given
        if not _fits(use, parameter):
            raise PrivacyError(
                f"expected per-sample gradients of {kind}.{names[parameter]}, of shape "
                f"(B, {', '.join(map(str, parameter.shape))}), got others",
                hint="see privacy.one_backward.samplers",
            )
        uses.append((parameter, use))
    return uses


def _fits(use: Use, parameter: nn.Parameter) -> bool:
    if isinstance(use, Dense):
        return use.gradients.shape[1:] == parameter.shape
    if isinstance(use, Product):
        return (
            use.x.dim() == use.g.dim() == 3
            and use.x.shape[:2] == use.g.shape[:2]
            and (use.g.shape[2], use.x.shape[2]) == parameter.shape
        )
    return isinstance(use, Lookup) and (
        use.g.dim() == 3
        and use.ids.shape == use.g.shape[:2]
        and parameter.shape[1:] == use.g.shape[2:]
    )
