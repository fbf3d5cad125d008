"""Opacus' optimizers with noise on a grid, from a cryptographic stream and a public denominator."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from torch import nn
from torch.optim import Optimizer

from core.errors import PrivacyError
from core.train import Proximal
from privacy.clipping_rules import clipping_factors
from privacy.discrete_gaussian_grid import GridNoise
from privacy.one_backward.clipping import add_clipped
from privacy.one_backward.tape import Use
from privacy.random_source import RandomStream


class CalibratedNoise(DPOptimizer):  # type: ignore[misc]
    """Noises, scales and only then pulls; Opacus' classes bring clipping, skipping and hooks.

    Guarantees:
        A step's sum is rounded to a grid and gets integer noise on it, from ``noise`` alone. Its
        deviation is ``noise_multiplier`` times what sums on the grid may be apart: ``sensitivity``
        and, for the rounding, at most a thousandth more. Clipping is to ``max_grad_norm``, which
        is smaller than ``sensitivity`` by more than the rounding of norms. The sum is divided by
        ``expected_batch_size``, never by a realised size. Gradients come ``loss_scale`` times too
        large, a power of two, and norms and sums are of what they are without it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        sensitivity: float,
        expected_batch_size: int,
        noise: RandomStream,
        pull: Proximal | None,
        clipping: str = "flat",
        loss_scale: int = 1,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction="sum",
        )
        if not max_grad_norm < sensitivity:
            raise PrivacyError(
                f"expected the clip below the sensitivity {sensitivity}, got {max_grad_norm}"
            )
        self.sensitivity = sensitivity
        self.clipping = clipping
        self.loss_scale = loss_scale
        self._noise = noise
        self._pull = pull
        self._grid_of: tuple[tuple[float, float, int], GridNoise] | None = None
        self.complete_sums: Callable[[Sequence[torch.Tensor]], None] = lambda sums: None
        """Adds to a step's sums, in place and before the noise, what other processes summed."""

    def add_noise(self) -> None:
        """Sets each gradient to the clipped sum plus noise. No sum without noise is kept."""
        sums = [flat_sum(parameter) for parameter in self.params]
        self.complete_sums(sums)
        self._grid(sum(one.numel() for one in sums)).add_(sums, self._noise)
        for parameter, noised in zip(self.params, sums, strict=True):
            parameter.grad = noised.view_as(parameter).to(parameter.dtype)
            parameter.summed_grad = None

    def _grid(self, dimension: int) -> GridNoise:
        """Of this step: its constants are public, and may have been changed since the last."""
        constants = (self.noise_multiplier, self.sensitivity, dimension)
        if self._grid_of is None or self._grid_of[0] != constants:
            noise = GridNoise(
                noise_multiplier=self.noise_multiplier,
                sensitivity=self.sensitivity,
                dimension=dimension,
            )
            self._grid_of = (constants, noise)
        return self._grid_of[1]

    def scale_grad(self) -> None:
        """Divides by the public expected batch size, then adds FedProx's pull."""
        parameters: Sequence[nn.Parameter] = self.params
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= self.expected_batch_size
        if self._pull is not None:
            self._pull.add_to_gradients(parameters)


def flat_sum(parameter: Any) -> torch.Tensor:
    """The clipped sum, or a copy, as one vector in fp32."""
    if parameter.summed_grad is None:
        raise PrivacyError("expected a clipped sum before the noise, got a step without one")
    flat: torch.Tensor = parameter.summed_grad.detach().float().reshape(-1)
    return flat


class HooksOptimizer(CalibratedNoise):
    """Clips per-sample gradients that Opacus' hooks left in ``p.grad_sample``."""

    @torch.no_grad()
    def clip_and_accumulate(self) -> None:
        """Adds the clipped gradients of a micro-batch to ``p.summed_grad``.

        Guarantees:
            Norms and sums are computed in fp32 from the same rounded tensors. An example whose
            gradient is not finite adds nothing, and still counts as having been sampled: what
            the others add does not depend on it.
        """
        samples = [gradients.float() for gradients in self.grad_samples]
        if self.loss_scale != 1:
            samples = [gradients / self.loss_scale for gradients in samples]
        squares = torch.stack([g.square().flatten(1).sum(dim=1) for g in samples])
        factors, finite = clipping_factors(self.clipping, squares, self.max_grad_norm)
        for parameter, gradients, weights in zip(self.params, samples, factors, strict=True):
            if not finite.all():  # zero times NaN is NaN: the rows themselves must go
                rows = finite.view(-1, *[1] * (gradients.dim() - 1))
                gradients = torch.where(rows, gradients, 0.0)
            clipped = torch.einsum("i,i...", weights, gradients)
            if parameter.summed_grad is None:
                parameter.summed_grad = clipped
            else:
                parameter.summed_grad += clipped


class GhostOptimizer(CalibratedNoise, DPOptimizerFastGradientClipping):  # type: ignore[misc]
    """Takes sums that ghost clipping's second backward pass left in ``p.grad``."""

    def add_noise(self) -> None:
        """As in every mode; Opacus' ghost class has its own, from torch's generator."""
        CalibratedNoise.add_noise(self)

    def __init__(self, optimizer: Optimizer, **options: Any) -> None:
        CalibratedNoise.__init__(self, optimizer, **options)


class OneBackwardOptimizer(CalibratedNoise, DPOptimizerFastGradientClipping):  # type: ignore[misc]
    """Clips and sums what one backward pass recorded."""

    def __init__(self, optimizer: Optimizer, **options: Any) -> None:
        CalibratedNoise.__init__(self, optimizer, **options)
        self._records: dict[nn.Parameter, list[Use]] | None = None

    def give(self, records: dict[nn.Parameter, list[Use]]) -> None:
        """Takes the uses of every parameter in one backward pass; none for a batch of no example.

        Raises:
            PrivacyError: The records of another backward pass wait for a step.
        """
        if self._records is not None:
            raise PrivacyError(
                "expected a step after each backward pass, got a second backward pass",
                hint="gradients are accumulated by steps that are told to skip the update",
            )
        self._records = records

    @torch.no_grad()
    def accumulate(self) -> None:
        """Adds the clipped gradients of a micro-batch to ``p.summed_grad``.

        Raises:
            PrivacyError: There was no backward pass.
        """
        records, self._records = self._records, None
        if records is None:
            raise PrivacyError("expected a backward pass before each step, got a step without one")
        if records:
            add_clipped(
                records,
                self.params,
                self.max_grad_norm,
                rule=self.clipping,
                loss_scale=self.loss_scale,
            )
        for parameter in self.params:
            if parameter.summed_grad is None:  # no example so far
                parameter.summed_grad = torch.zeros_like(parameter)

    def add_noise(self) -> None:
        """As in every mode; Opacus' class has its own, from torch's generator."""
        CalibratedNoise.add_noise(self)
