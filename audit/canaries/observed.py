"""What a white-box adversary sees: every gradient that the optimizer is given, and the weights."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from audit.canaries.reserved import Reserved
from core.tasks.interface import Example
from privacy.dp_sgd import DpSgdPlan

_MAX_EXPONENT: Final = 700.0  # of exp() in double precision
_TINY: Final = 1e-30


class RowObserver:
    """Scores canaries by what arrives on their rows.

    Before every step of the optimizer, where with differential privacy the noise is in, it takes
    the part of the gradient on a canary's row along the canary's own gradient, which an adversary
    who knows canary and weights computes for himself. Evidence adds up over the steps: the
    logarithm of the likelihood ratio of a step with and without the canary, by the public
    constants; without privacy the plain sum.
    """

    def __init__(
        self, reserved: Reserved, examples: Sequence[Example], plan: DpSgdPlan | None
    ) -> None:
        self._reserved, self._plan = reserved, plan
        self._reference = copy.deepcopy(reserved.model)
        task = reserved.subject.blueprint.task
        self._batch = task.collate(examples).to(reserved.subject.device)
        self._rows = torch.tensor(list(reserved.rows), device=reserved.subject.device)
        self.scores: npt.NDArray[np.float64] = np.zeros(len(examples))
        """One for each canary; large where it seems to have been in."""
        self.steps = 0
        """Steps that were seen."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sees the steps that the model takes within."""
        handle = register_optimizer_step_pre_hook(self._before_step)
        try:
            yield
        finally:
            handle.remove()

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        weight = _embedding(self._reserved.model)
        # Opacus' optimizer wraps the one that steps: the gradient is noised in the inner one only.
        if not type(optimizer).__module__.startswith("torch.optim"):
            return
        if not any(p is weight for group in optimizer.param_groups for p in group["params"]):
            return
        self.steps += 1
        if weight.grad is None:
            return
        seen = weight.grad[self._rows].double()
        along = (seen * self._directions()).sum(dim=1).cpu().numpy()
        self.scores += self.evidence(along)

    def _directions(self) -> Tensor:
        """The canaries' own gradients on their rows at the present weights, of length 1."""
        with torch.no_grad():
            pairs = zip(
                self._reference.parameters(), self._reserved.model.parameters(), strict=True
            )
            for copied, weight in pairs:
                copied.copy_(weight)
        self._reference.train()
        task = self._reserved.subject.blueprint.task
        logits = self._reference(self._batch.tokens, self._batch.attention_mask)
        loss = task.loss_per_example(logits.float(), self._batch).sum()
        (gradient,) = torch.autograd.grad(loss, _embedding(self._reference))
        own = gradient[self._rows].double()
        length: Tensor = own.norm(dim=1, keepdim=True)
        return own / length.clamp(min=_TINY)

    def evidence(self, along: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What gradients of such lengths along the canaries' own say for their having been in."""
        plan = self._plan
        if plan is None:
            return along
        shift = along * plan.expected_batch_size / plan.max_grad_norm
        exponent = (shift - 0.5) / plan.noise_multiplier**2
        rate = plan.sample_rate
        if rate == 1.0:
            return exponent
        # log(1 - q + q e^x), where e^x may overflow
        inside = np.minimum(exponent, _MAX_EXPONENT)
        small = np.log1p(rate * np.expm1(inside))
        return np.where(exponent > _MAX_EXPONENT, exponent + math.log(rate), small)


def _embedding(model: nn.Module) -> nn.Parameter:
    weight: nn.Parameter = model.transformer.token_embedding.weight  # type: ignore[union-attr,assignment]
    return weight
