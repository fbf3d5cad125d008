"""Layers whose backward pass gives the input's gradient alone and records the rest on a tape.

Ordinary parameter gradients are never computed: each function below returns ``None`` for the
parameters that it was given, which are arguments only so that autograd runs its backward pass.
A record is made in the backward pass, so a layer whose forward pass runs again (activation
checkpointing) records once.

Source: Bu et al. 2022, "Differentially Private Optimization on Large Model at Small Cost".
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from core.errors import UnsupportedLayerError
from privacy.one_backward.samplers import SAMPLERS, sampled_forward
from privacy.one_backward.tape import Dense, Lookup, Product, Tape, rows, wide


def _record_small(tape: Tape, parameter: nn.Parameter | None, gradients: Tensor) -> None:
    """Of a bias or a norm: (B, S, features), summed over S at once, for that is small."""
    if parameter is not None and parameter.requires_grad:
        summed = wide(gradients).sum(dim=1)
        tape.record(parameter, Dense(summed.view(len(summed), *parameter.shape)))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, tape: Tape) -> Tensor:
        ctx.tape, ctx.weight, ctx.bias = tape, weight, bias
        rounded = weight.to(x.dtype)
        ctx.save_for_backward(x, rounded)
        return F.linear(x, rounded, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        if ctx.weight.requires_grad:
            ctx.tape.record(ctx.weight, Product(rows(x, 1), rows(g, 1)))
        _record_small(ctx.tape, ctx.bias, rows(g, 1))
        return g @ weight if ctx.needs_input_grad[0] else None, None, None, None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Any, tape: Tape) -> Tensor:
        ctx.tape, ctx.weight = tape, weight
        ctx.save_for_backward(ids)
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (ids,) = ctx.saved_tensors
        ctx.tape.record(ctx.weight, Lookup(rows(ids, 0).squeeze(2), rows(g, 1)))
        return None, None, None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.LayerNorm, tape: Tape, *parameters: Any) -> Tensor:
        ctx.layer, ctx.tape = layer, tape
        shape = list(layer.normalized_shape)
        y, mean, rstd = torch.native_layer_norm(x, shape, layer.weight, layer.bias, layer.eps)
        ctx.save_for_backward(x, mean, rstd, layer.weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x, mean, rstd, weight = ctx.saved_tensors
        layer, shape = ctx.layer, list(ctx.layer.normalized_shape)
        features = len(shape)
        if layer.weight.requires_grad:
            normal = (x - mean).mul_(rstd).mul_(g)
            _record_small(ctx.tape, layer.weight, rows(normal, features))
        _record_small(ctx.tape, layer.bias, rows(g, features))
        gx = None
        if ctx.needs_input_grad[0]:
            gx, _, _ = torch.ops.aten.native_layer_norm_backward(
                g, x, shape, mean, rstd, weight, layer.bias, [True, False, False]
            )
        return gx, None, None, *[None] * (len(ctx.needs_input_grad) - 3)


class _Scale(torch.autograd.Function):
    """The weight of an RMSNorm; what comes before it, autograd knows."""

    @staticmethod
    def forward(ctx: Any, normal: Tensor, weight: Any, tape: Tape) -> Tensor:
        ctx.weight, ctx.tape = weight, tape
        ctx.save_for_backward(normal, weight)
        return torch.mul(normal, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        normal, weight = ctx.saved_tensors
        _record_small(ctx.tape, ctx.weight, rows(g * normal, weight.dim()))
        return g * weight if ctx.needs_input_grad[0] else None, None, None


def _reduced(x: Tensor) -> Tensor:
    """As autocast would round it, but once: the record is what the product saw."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(kind))
    return x


def _full(x: Tensor) -> Tensor:
    return wide(x) if torch.is_autocast_enabled(x.device.type) else x


def recording_forward(layer: nn.Module, tape: Tape) -> Callable[..., Tensor] | None:
    """The forward of ``layer`` that records on ``tape``; ``None`` where nothing is trained.

    Args:
        layer: A Linear, Embedding, LayerNorm, RMSNorm, or of a registered kind.
        tape: Where its backward pass leaves activations and output gradients.
    """
    if not any(p.requires_grad for p in layer.parameters(recurse=False)):
        return None
    if isinstance(layer, nn.Linear):
        return lambda x: _call(_Linear, _reduced(x), layer.weight, layer.bias, tape)
    if isinstance(layer, nn.Embedding):
        return lambda ids: _call(_Embedding, ids, layer.weight, tape)
    if isinstance(layer, nn.LayerNorm):
        return lambda x: _call(_LayerNorm, _full(x), layer, tape, layer.weight, layer.bias)
    if isinstance(layer, nn.RMSNorm):
        return lambda x: _call(_Scale, _normal(layer, x), layer.weight, tape)
    sampler = SAMPLERS.get(type(layer))
    if sampler is not None:
        return sampled_forward(layer, sampler, tape)
    raise UnsupportedLayerError(f"expected a layer that can record, got {type(layer).__name__}")


def _normal(layer: nn.RMSNorm, x: Tensor) -> Tensor:
    return F.rms_norm(_full(x), list(layer.normalized_shape), None, layer.eps)


def _call(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result
