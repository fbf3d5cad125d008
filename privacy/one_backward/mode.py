"""The gradient mode ``one_backward`` and the module that it wraps a model in."""

from typing import Any, Final

from torch import nn

from core.errors import PrivacyError
from core.tasks.interface import Batch
from core.train import Loss, TrainConfig
from privacy.guards import check_layers, check_loss_shape
from privacy.one_backward.layers import recording_forward
from privacy.one_backward.samplers import SAMPLERS
from privacy.one_backward.tape import Tape
from privacy.optimizers import CalibratedNoise, OneBackwardOptimizer

# Norms from Gram products in fp32, also in mixed precision; see ``privacy.one_backward.clipping``.
_SLACK: Final = 2.0**-10


class OneBackwardModule(nn.Module):
    """A model whose layers record on ``tape``, instead of computing gradients, until ``cleanup``.

    Raises:
        UnsupportedLayerError: Names a trained layer that cannot record.
        PrivacyError: The model is wrapped already.
    """

    def __init__(self, model: nn.Module) -> None:
        check_layers(model, tuple(SAMPLERS))
        super().__init__()
        self.tape = Tape(model)
        recording = [
            (layer, forward)
            for layer in model.modules()
            if (forward := recording_forward(layer, self.tape)) is not None
        ]
        if any("forward" in vars(layer) for layer, _ in recording):
            raise PrivacyError(
                "expected layers with the forward of their class, got one with its own",
                hint="call cleanup() on the module that wraps the model already",
            )
        for layer, forward in recording:
            layer.forward = forward
        self._layers = [layer for layer, _ in recording]
        self._module = model

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """The model's own, recorded."""
        return self._module(*arguments, **options)

    def forbid_grad_accumulation(self) -> None:
        """Nothing: a second backward pass without a step is always refused."""

    def cleanup(self) -> None:
        """Gives the layers their own forward back and forgets every record."""
        for layer in self._layers:
            vars(layer).pop("forward", None)
        self._layers = []
        self.tape.clear()


class OneBackwardMode:
    """One backward pass that records; then norms, and one weighted product per layer."""

    optimizer_class: type[CalibratedNoise] = OneBackwardOptimizer

    def check(self, model: nn.Module, config: TrainConfig, clipping: str = "flat") -> None:
        """Everything that passes the guards is supported."""

    def further_layers(self) -> tuple[type[nn.Module], ...]:
        """Those that were registered, see ``privacy.one_backward.samplers``."""
        return tuple(SAMPLERS)

    def slack(self, config: TrainConfig) -> float:
        """Of norms from Gram products in fp32."""
        return _SLACK

    def wrap(self, model: nn.Module, clip: float) -> OneBackwardModule:
        """The model with layers that record."""
        return OneBackwardModule(model)

    def backward(self, module: Any, optimizer: CalibratedNoise, loss: Loss, batch: Batch) -> None:
        """One forward and one backward pass; the records are the optimizer's to clip.

        Raises:
            LossContractError: The loss is not (B,).
            PrivacyError: A trained parameter took no part, was used more or less often than it is
                registered, past its layer, or saw another batch dimension.
        """
        tape: Tape = module.tape
        tape.clear()
        for parameter in optimizer.params:
            parameter.grad = None
        losses = loss(module, batch)
        check_loss_shape(losses, len(batch))
        (losses * optimizer.loss_scale).sum().backward()  # type: ignore[no-untyped-call]
        tape.check(optimizer.params, len(batch))
        _one_backward(optimizer).give(tape.take())

    def empty(self, optimizer: CalibratedNoise) -> None:
        """Records of no sample."""
        _one_backward(optimizer).give({})


def _one_backward(optimizer: CalibratedNoise) -> OneBackwardOptimizer:
    if not isinstance(optimizer, OneBackwardOptimizer):
        raise PrivacyError(
            f"expected the optimizer of this gradient mode, got {type(optimizer).__name__}"
        )
    return optimizer
