"""The gradient mode ``one_backward`` in either of its executions: eagerly, or as one graph."""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from core.errors import PrivacyError, UnsupportedLayerError
from core.tasks.interface import Batch
from core.train import Loss, TrainConfig
from privacy.discrete_gaussian_grid import GridNoise
from privacy.half_precision import check_half_precision
from privacy.noise_ahead import GridNoiseAhead
from privacy.one_backward.functional import SWITCH, Backend, FunctionalModule
from privacy.one_backward.functional_layers import check_functional
from privacy.one_backward.mode import OneBackwardMode
from privacy.optimizers import CalibratedNoise, OneBackwardOptimizer

_EXECUTIONS: Final = ("auto", "eager", "compiled")


class EitherOptimizer(OneBackwardOptimizer):
    """Takes the records of an eager backward pass, or sums that are clipped already."""

    def __init__(self, optimizer: torch.optim.Optimizer, **options: Any) -> None:
        super().__init__(optimizer, **options)
        self._sums: list[Tensor] | None = None
        self._ahead: tuple[tuple[float, float, int], GridNoiseAhead] | None = None

    def add_noise(self) -> None:
        """As in every mode; on a GPU the CPU then begins to draw for the next step."""
        super().add_noise()
        if self._ahead is not None:
            self._ahead[1].begin(self._noise)

    def _grid(self, dimension: int) -> GridNoise:
        device = self.params[0].device
        if not draws_ahead(device):
            return super()._grid(dimension)
        constants = (self.noise_multiplier, self.sensitivity, dimension)
        if self._ahead is None or self._ahead[0] != constants:
            noise = GridNoiseAhead(
                noise_multiplier=self.noise_multiplier,
                sensitivity=self.sensitivity,
                dimension=dimension,
                device=device,
            )
            self._ahead = (constants, noise)
        return self._ahead[1]

    def give_sums(self, sums: list[Tensor]) -> None:
        """Takes the clipped sum of each of ``params`` over one micro-batch.

        Raises:
            PrivacyError: The sums of another backward pass wait for a step.
        """
        if self._sums is not None:
            raise PrivacyError(
                "expected a step after each backward pass, got a second backward pass",
                hint="gradients are accumulated by steps that are told to skip the update",
            )
        self._sums = sums

    @torch.no_grad()
    def accumulate(self) -> None:
        """Adds them to ``p.summed_grad``."""
        if self._sums is None:
            super().accumulate()
            return
        sums, self._sums = self._sums, None
        for parameter, found in zip(self.params, sums, strict=True):
            before = parameter.summed_grad
            parameter.summed_grad = found if before is None else before.add_(found)


class OneBackward(OneBackwardMode):
    """One backward pass: layer by layer, or as one compiled graph.

    Which of the two it is changes no term of the guarantee: rule, slack, sensitivity and noise are
    the same, and the rehearsal on made-up examples goes the way that the training goes. The
    environment's ``CLOISTER_ONE_BACKWARD`` is ``eager``, ``compiled`` or ``auto``. ``auto``
    compiles on a CUDA device that Triton can be used on, where every trained layer has a
    functional form; a layer that was registered, say, has none.

    Args:
        execution: In place of the environment's.
        backend: Of ``torch.compile``; ``None`` runs the functional form without it.
    """

    optimizer_class: type[CalibratedNoise] = EitherOptimizer

    def __init__(self, execution: str | None = None, backend: Backend | None = "inductor") -> None:
        self._execution, self._backend = execution, backend

    def check(self, model: nn.Module, config: TrainConfig, clipping: str = "flat") -> None:
        """Refuses fp16 with several records at a time; the guards do the rest."""
        check_half_precision(config)

    def wrap(self, model: nn.Module, clip: float) -> Any:
        """The model with layers that record, or its functional form.

        Raises:
            PrivacyError: The execution is none of the three.
            UnsupportedLayerError: It is ``compiled``, and a layer has no functional form.
        """
        execution = execution_of() if self._execution is None else self._execution
        if execution == "compiled" or (execution == "auto" and _fits(model)):
            return FunctionalModule(model, self._backend)
        return super().wrap(model, clip)

    def backward(self, module: Any, optimizer: CalibratedNoise, loss: Loss, batch: Batch) -> None:
        """One forward and one backward pass, whose records or sums are the optimizer's."""
        if not isinstance(module, FunctionalModule):
            super().backward(module, optimizer, loss, batch)
            return
        if not isinstance(optimizer, EitherOptimizer):
            raise PrivacyError(
                f"expected the optimizer of this gradient mode, got {type(optimizer).__name__}"
            )
        numbers = {p: n for n, p in enumerate(module.trained)}
        if set(numbers) != set(optimizer.params):
            raise PrivacyError(
                "expected parameters that were trained when the model was wrapped, got another",
                hint="freeze and thaw weights before the model is made private",
            )
        sums = module.sums(
            loss,
            batch,
            rule=optimizer.clipping,
            clip=optimizer.max_grad_norm,
            loss_scale=optimizer.loss_scale,
        )
        optimizer.give_sums([sums[numbers[p]] for p in optimizer.params])


def execution_of(environment: Mapping[str, str] = os.environ) -> str:
    """What the environment asks for; ``eager`` without it, for no GPU has run the graph yet."""
    execution = environment.get(SWITCH, "eager")
    if execution not in _EXECUTIONS:
        raise PrivacyError(f"expected {SWITCH} of {', '.join(_EXECUTIONS)}, got {execution!r}")
    return execution


def draws_ahead(device: torch.device) -> bool:
    """Whether the CPU has nothing to do while a step is computed, and so draws the next noise."""
    return device.type == "cuda"


def _fits(model: nn.Module) -> bool:
    device = next(model.parameters()).device
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    if torch.cuda.get_device_capability(device) < (7, 0):  # what Triton is made for
        return False
    try:
        check_functional(model)
    except UnsupportedLayerError:
        return False
    return True
