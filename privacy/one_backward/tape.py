"""What one backward pass leaves behind: for each trained parameter, how it was used."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from core.errors import PrivacyError

# Extra memory that instantiated per-sample gradients may take beyond the records they replace.
_BUDGET_BYTES: Final = 64 * 2**20
# A number written to memory and read again costs about as much as so many multiplications:
# measured, 32 is no faster and takes a tenth more memory.
_COST_OF_MEMORY: Final = 64


@dataclass(frozen=True)
class Product:
    """A use as the matrix of a Linear: sample i's gradient is ``g[i].T @ x[i]``."""

    x: Tensor  # (B, S, in)
    g: Tensor  # (B, S, out)


@dataclass(frozen=True)
class Lookup:
    """A use as the table of an Embedding: ``g[i, s]`` is added to row ``ids[i, s]``."""

    ids: Tensor  # (B, S) int64
    g: Tensor  # (B, S, C)


@dataclass(frozen=True)
class Dense:
    """Per-sample gradients, instantiated."""

    gradients: Tensor  # (B, *shape of the parameter)


Use = Product | Lookup | Dense


def wide(tensor: Tensor) -> Tensor:
    """In fp32 at least: what norms, factors and sums are computed in."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def rows(tensor: Tensor, features: int) -> Tensor:
    """(B, ..., *features) as (B, S, features) with ``features`` trailing dimensions made one."""
    first = tensor.shape[0] if tensor.dim() > features else 1
    middle = tensor.shape[1 : tensor.dim() - features]
    last = tensor.shape[tensor.dim() - features :]
    return tensor.reshape(first, math.prod(middle), math.prod(last))


class Tape:
    """Records of one backward pass over the layers of one model.

    Guarantees:
        After ``check``, each trained parameter was used exactly as often as it is registered,
        with the same number of examples in every use.
    """

    def __init__(self, model: nn.Module) -> None:
        registered = model.named_parameters(remove_duplicate=False)
        trained = [(name, p) for name, p in registered if p.requires_grad]
        self._registered = Counter(p for _, p in trained)
        self._names = {p: name for name, p in reversed(trained)}  # the first name counts
        self.uses: dict[nn.Parameter, list[Use]] = {}
        self._budget = 0

    def clear(self) -> None:
        """Forgets every record."""
        self.uses.clear()
        self._budget = _BUDGET_BYTES

    def take(self) -> dict[nn.Parameter, list[Use]]:
        """The records, which the tape forgets."""
        taken, self.uses = self.uses, {}
        return taken

    def record(self, parameter: nn.Parameter, use: Use) -> None:
        """Takes one use, as instantiated gradients where that is cheaper and memory allows."""
        if isinstance(use, Product) and self._registered[parameter] == 1:
            use = self._instantiated(use)
        self.uses.setdefault(parameter, []).append(use)

    def _instantiated(self, use: Product) -> Product | Dense:
        batch, length, width = use.x.shape
        size, both = width * use.g.shape[2], width + use.g.shape[2]
        # The Gram product of the lower triangle against writing and reading the gradients.
        if _COST_OF_MEMORY * size > length * length * both / 2:
            return use
        extra = 4 * batch * (size - length * both)
        if extra > self._budget:
            return use
        self._budget -= max(0, extra)
        return Dense(wide(use.g).mT @ wide(use.x))

    def check(self, parameters: Iterable[nn.Parameter], num_examples: int) -> None:
        """Raises PrivacyError, by name, where the records are not those of the whole gradient."""
        for parameter in parameters:
            self._check(parameter, num_examples)

    def _check(self, parameter: nn.Parameter, num_examples: int) -> None:
        name, expected = self._names.get(parameter), self._registered[parameter]
        if name is None:
            raise PrivacyError(
                "expected parameters that were trained when the model was wrapped, got another",
                hint="freeze and thaw weights before the model is made private",
            )
        uses = self.uses.get(parameter, [])
        if not uses:
            raise PrivacyError(
                f"expected per-sample gradients of {name}, got none",
                hint="a trained parameter must take part in the loss; freeze it, or remove it",
            )
        for use in uses:
            found = len(use.gradients if isinstance(use, Dense) else use.g)
            if found != num_examples:
                raise PrivacyError(
                    f"expected {num_examples} per-sample gradients of {name}, got {found}",
                    hint="every layer must see the batch as its first dimension",
                )
        if len(uses) != expected:
            raise PrivacyError(
                f"expected {expected} uses of {name}, as often as it is registered, "
                f"got {len(uses)}",
                hint='call each layer once, or set privacy.gradient_mode = "hooks"',
            )
        if parameter.grad is not None:
            raise PrivacyError(
                f"expected every use of {name} to be recorded, got one past its layer",
                hint="call every layer as a module, with the example as first dimension",
            )
