"""Clipping rehearsed on made-up examples before it is trusted with records.

A model may use its weights past the layers that Opacus watches (a tied product written by hand, a
layer with a parameter of its own): ghost clipping then clips to a norm that is too small, and
releases more than it accounts for. Layers are checked by kind in ``guards``; here the result is.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn

from core.errors import PrivacyError, UnsupportedLayerError
from core.tasks.interface import Batch, Task
from core.train import Loss, TrainConfig, gradient_scale
from privacy.clipping_rules import clipping_factors
from privacy.gradient_modes import GradientMode
from privacy.guards import PROBES, SUPPORTED_LAYERS
from privacy.random_source import RandomSource

# Of the clip; measured: 2**-10, and 2**-7 in mixed precision, most of it slack.
_TOLERANCE: Final = {"off": 2.0**-8, "bf16": 2.0**-4, "fp16": 2.0**-5}
_CLIP: Final = 0.5  # of a gradient whose norm is 1


def rehearse(
    model: nn.Module,
    task: Task,
    loss: Loss,
    mode: GradientMode,
    config: TrainConfig,
    *,
    clipping: str = "flat",
) -> None:
    """Compares clipped gradients of made-up examples with autograd's.

    Guarantees:
        After a return, the mode gave for each of three short examples what ``clipping`` makes of
        autograd's gradient of it, and nothing longer than it was told. The model is as it was.

    Raises:
        UnsupportedLayerError: It did not.
        PrivacyError: A trained parameter took no part, or a gradient is not finite.
    """
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    before = model.training
    model.train()
    try:
        for probe in PROBES:
            batch = task.collate([probe]).to(device)
            expected = _gradient(model, loss, batch, trained, gradient_scale(config))
            norm = float(expected.double().norm())
            if not norm < float("inf"):
                raise PrivacyError(f"expected a finite gradient of a made-up text, got norm {norm}")
            if norm == 0:
                continue
            # Brought to norm 1: a confident model's is as small as what Opacus adds to a norm
            # before it divides by it, and then would show nothing.
            unit = _scaled(loss, torch.tensor(1 / norm, device=device))
            found = _clipped(model, unit, batch, trained, mode, config, clipping)
            wanted = _by_rule(expected / norm, trained, clipping)
            gap = float((found - wanted).norm()) / _CLIP
            if not gap <= _TOLERANCE[config.autocast] or not float(found.norm()) <= _CLIP:
                raise UnsupportedLayerError(
                    "expected the clipped gradient of a made-up text to be autograd's, scaled, "
                    f"got one that is {gap:.1%} away from it",
                    hint="call every layer as a module, with the example as first dimension",
                )
    finally:
        model.train(before)


def _scaled(loss: Loss, factor: torch.Tensor) -> Loss:
    # A tensor: each number would be compiled anew, where the mode compiles.
    return lambda model, batch: loss(model, batch) * factor


def _gradient(
    model: nn.Module, loss: Loss, batch: Batch, trained: list[nn.Parameter], loss_scale: int
) -> torch.Tensor:
    with _same_dropout(batch):
        total = loss(model, batch).sum() * loss_scale
    gradients = torch.autograd.grad(total, trained, allow_unused=True)
    whole = [
        torch.zeros_like(p) if g is None else g for p, g in zip(trained, gradients, strict=True)
    ]
    return _flat(whole) / loss_scale


def _clipped(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    trained: list[nn.Parameter],
    mode: GradientMode,
    config: TrainConfig,
    clipping: str,
) -> torch.Tensor:
    """What the mode would add noise to, if ``batch`` were all that was sampled."""
    tight = _CLIP * (1.0 - mode.slack(config))
    optimizer = mode.optimizer_class(
        torch.optim.SGD(trained, lr=0.0),
        noise_multiplier=1.0,
        max_grad_norm=tight,
        sensitivity=_CLIP,
        expected_batch_size=1,
        noise=RandomSource.fresh().stream("rehearsal"),
        pull=None,
        clipping=clipping,
        loss_scale=gradient_scale(config),
    )
    module = mode.wrap(model, tight)
    try:
        with _same_dropout(batch):
            mode.backward(module, optimizer, loss, batch)
        optimizer.signal_skip_step(do_skip=True)  # sum, but neither noise nor a step
        optimizer.step()
        return _flat([p.summed_grad.detach() for p in trained])  # type: ignore[attr-defined]
    except (NotImplementedError, RuntimeError) as error:
        # Autograd knew what to do, so it is Opacus: a layer called twice, other batch dimensions.
        raise UnsupportedLayerError(
            f"expected layers that Opacus can clip, got: {error}"
        ) from error
    finally:
        forget_gradients(module, model)


def _by_rule(gradient: torch.Tensor, trained: list[nn.Parameter], clipping: str) -> torch.Tensor:
    """What the rule makes of one example's gradient."""
    parts = torch.split(gradient, [p.numel() for p in trained])
    squares = torch.stack([part.square().sum() for part in parts]).unsqueeze(1)
    factors, _ = clipping_factors(clipping, squares, _CLIP)
    return torch.cat([part * factor for part, factor in zip(parts, factors, strict=True)])


@contextlib.contextmanager
def _same_dropout(batch: Batch) -> Iterator[None]:
    device = batch.tokens.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def _flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.detach().float().reshape(-1) for t in tensors])


def forget_gradients(module: Any, model: nn.Module) -> None:
    """Takes hooks, gradients and activations of private records off ``model``.

    Guarantees:
        Nothing computed from an example stays on the model but its weights, also after an error
        within a step; the next training of the same model begins clean.

    Args:
        module: What ``GradientMode.wrap`` made of the model.
        model: The model.
    """
    module.cleanup()
    for layer in model.modules():
        if isinstance(layer, SUPPORTED_LAYERS):  # Opacus leaves these behind
            layer.__dict__.pop("activations", None)
            layer.__dict__.pop("max_batch_len", None)
    for parameter in model.parameters():
        parameter.grad = None
        parameter.__dict__.pop("summed_grad", None)
