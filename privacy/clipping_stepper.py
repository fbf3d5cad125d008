"""Steps that clip and sum, and go on as Opacus' optimizer does: noise and update, or neither."""

from typing import Any

from core.tasks.interface import Batch
from core.train import Loss
from privacy.gradient_modes import GradientMode
from privacy.optimizers import CalibratedNoise


class ClippingStepper:
    """Drives Opacus' optimizer as its BatchMemoryManager does, empty batches included.

    Args:
        module: The wrapped model.
        optimizer: Clips, sums, and noises.
        mode: How gradients are computed.
        loss: The loss per example.
        updates: Noise and update after the last micro-batch; else only the sum is left.
    """

    def __init__(
        self,
        module: Any,
        optimizer: CalibratedNoise,
        mode: GradientMode,
        loss: Loss,
        *,
        updates: bool = True,
    ) -> None:
        self._module, self._optimizer, self._mode, self._loss = module, optimizer, mode, loss
        self._updates = updates

    def micro_step(self, batch: Batch, *, last: bool) -> None:
        """Clips and sums a micro-batch; with the last one the step is complete."""
        self._mode.backward(self._module, self._optimizer, self._loss, batch)
        self._advance(last=last)

    def empty_step(self) -> None:
        """A batch without examples is a step all the same: a sum of zeros, and noise."""
        self._mode.empty(self._optimizer)
        self._advance(last=True)

    def _advance(self, *, last: bool) -> None:
        self._optimizer.signal_skip_step(do_skip=not (last and self._updates))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
