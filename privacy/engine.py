"""Opacus' PrivacyEngine with public constants in place of functions of the data.

Opacus derives the sampling rate and the denominator from the length of the data loader, which
follows the private number of records (its issues 571 and 819): neighbouring data sets are then
trained with different constants, and the claimed epsilon is void.
"""

from typing import Any

from opacus import PrivacyEngine
from opacus.accountants import PRVAccountant
from torch import nn
from torch.optim import Optimizer

from core.train import Proximal
from privacy.gradient_modes import GradientMode
from privacy.optimizers import CalibratedNoise
from privacy.random_source import RandomStream


class ExecutedSteps(PRVAccountant):  # type: ignore[misc]
    """Opacus' accountant, told the public sampling rate: a record of the steps that ran."""

    def __init__(self, sample_rate: float) -> None:
        super().__init__()
        self._sample_rate = sample_rate

    def get_optimizer_hook_fn(self, sample_rate: float) -> Any:
        """Ignores the engine's ``sample_rate``, which is a function of the data."""
        return super().get_optimizer_hook_fn(self._sample_rate)

    @property
    def steps(self) -> int:
        """Noised steps so far."""
        return sum(steps for _, _, steps in self.history)


class PublicConstantsEngine(PrivacyEngine):  # type: ignore[misc]
    """Makes model and optimizer private with constants that are given, never derived.

    Guarantees:
        Expected batch size, noise and sampling rate are those of the constructor, whatever the
        data set's size.
    """

    def __init__(
        self,
        mode: GradientMode,
        *,
        sample_rate: float,
        expected_batch_size: int,
        sensitivity: float,
        noise: RandomStream,
        pull: Proximal | None,
        loss_scale: int = 1,
    ) -> None:
        # Opacus' own constructor only warns that its generator is not secure; ours is.
        self.accountant = ExecutedSteps(sample_rate)
        self.secure_mode = False
        self.secure_rng = None
        self.dataset = None
        self._mode = mode
        self._expected_batch_size = expected_batch_size
        self._sensitivity = sensitivity
        self._noise = noise
        self._pull = pull
        self._loss_scale = loss_scale

    def _prepare_model(self, module: nn.Module, *, max_grad_norm: float, **_: Any) -> Any:
        self.validate(module=module, optimizer=None, data_loader=None)
        return self._mode.wrap(module, max_grad_norm)

    def _prepare_data_loader(self, data_loader: Any, **_: Any) -> Any:
        return data_loader  # it samples already, from a cryptographic stream

    def _prepare_criterion(self, **_: Any) -> None:
        """None: the gradient mode drives both passes of ghost clipping itself."""

    def _prepare_optimizer(
        self,
        *,
        optimizer: Optimizer,
        noise_multiplier: float,
        max_grad_norm: float,
        clipping: str,
        **_: Any,
    ) -> CalibratedNoise:
        return self._mode.optimizer_class(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            sensitivity=self._sensitivity,
            expected_batch_size=self._expected_batch_size,
            noise=self._noise,
            pull=self._pull,
            clipping=clipping,
            loss_scale=self._loss_scale,
        )
