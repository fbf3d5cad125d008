"""Clipped sums by the functional form of one backward pass."""

from typing import Any

from torch import Tensor, nn

from core.tasks.interface import Batch
from core.train import Loss
from privacy.one_backward.functional import FunctionalModule
from tests.support.clipped_sums import Sums, plain_loss


def summed(
    model: nn.Module,
    *batches: Batch,
    clip: float,
    rule: str = "flat",
    loss: Loss = plain_loss,
    backend: Any = None,
    loss_scale: int = 1,
) -> Sums:
    """What noise would be added to, by the functional form."""
    module = FunctionalModule(model, backend)
    total: list[Tensor] = []
    for batch in batches:
        found = module.sums(loss, batch, rule=rule, clip=clip, loss_scale=loss_scale)
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return dict(zip(names, total, strict=True))
