"""How the norms of one example's gradient become the factors that bound its part of the sum.

Each rule bounds what one example adds by the clip, whatever its gradient is: that is the
sensitivity of the sum, and noise, accounting and ledger are the same for all of them.
"""

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

# As Opacus: a norm of zero divides nothing.
_ABOVE_ZERO: Final = 1e-6
# Bu et al. 2022, "Automatic Clipping", section 3: gamma of AUTO-S, at which they report.
STABILITY: Final = 0.01

ClippingRule = Callable[[Tensor, float], Tensor]


def _flat(squares: Tensor, clip: float) -> Tensor:
    norms = squares.sum(dim=0).sqrt()
    return (clip / (norms + _ABOVE_ZERO)).clamp(max=1.0).expand_as(squares)


def _per_layer(squares: Tensor, clip: float) -> Tensor:
    bound = clip / math.sqrt(len(squares))
    return (bound / (squares.sqrt() + _ABOVE_ZERO)).clamp(max=1.0)


def _automatic(squares: Tensor, clip: float) -> Tensor:
    norms = squares.sum(dim=0).sqrt()
    return (clip / (norms + STABILITY)).expand_as(squares)


CLIPPING_RULES: Final[dict[str, ClippingRule]] = {
    "flat": _flat,
    "per_layer": _per_layer,
    "automatic": _automatic,
}


def clipping_factors(rule: str, squares: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """What each example's gradients are multiplied with before they are summed.

    Guarantees:
        For every example, the gradients of its parameters, each times its factor, have an L2 norm
        of at most ``clip`` together, up to the rounding of fp32. An example without a finite norm
        has the factor 0 throughout, also where some of its gradients are finite. A factor is a
        function of that example alone.

    Args:
        rule: ``flat``: the whole gradient is scaled down to ``clip``, if it is longer.
            ``per_layer``: each trained parameter's to ``clip`` over the root of their number
            (Opacus' groups; a shared weight is one). ``automatic``: the whole gradient is scaled
            to just below ``clip``, if it is shorter as well: ``clip * g / (norm of g + 0.01)``.
        squares: (P, B), the squared norm of each trained parameter's gradient of each example,
            in fp32.
        clip: The bound.

    Returns:
        Factors (P, B), and which examples have a finite norm (B,).

    Source: Abadi et al. 2016 (flat); McMahan et al. 2018, "Learning Differentially Private
    Recurrent Language Models", section 2 (per layer); Bu et al. 2022, "Automatic Clipping",
    section 3 (automatic).
    """
    finite = torch.isfinite(squares.sum(dim=0))
    factors = CLIPPING_RULES[rule](squares, clip)
    return torch.where(finite, factors, 0.0), finite
