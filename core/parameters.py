"""Model parameters as named arrays: what is trained, what travels and what is compared."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from core.digests import arrays_digest
from core.errors import CheckpointError, ConfigError

# Elements of which a norm is summed at once: float64 differences that stay in the cache.
_NORM_BLOCK: Final = 65_536

Arrays = dict[str, npt.NDArray[Any]]


def freeze(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Stops the training of every parameter whose name begins with one of ``prefixes``.

    Raises:
        ConfigError: A prefix fits no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise ConfigError(
                f"expected train.freeze to name parameters, got {prefix!r}, which fits none",
                hint=f"the model has {', '.join(names[:6])}, ...",
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(prefixes)))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("expected something to train, got train.freeze that fits everything")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name; a tied one once, under its first name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def to_arrays(model: nn.Module, *, all_parameters: bool = False) -> Arrays:
    """Copies of the trained parameters, or of all, as fp32 arrays."""
    chosen = dict(model.named_parameters()) if all_parameters else trainable(model)
    return {
        name: p.detach().to("cpu", torch.float32, copy=True).numpy() for name, p in chosen.items()
    }


def cut(
    vector: npt.NDArray[np.float32], like: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[np.float32]]:
    """One vector as arrays of the names and shapes of ``like``, in their order: views of it."""
    arrays, start = {}, 0
    for name in sorted(like):
        stop = start + like[name].size
        arrays[name] = vector[start:stop].reshape(like[name].shape)
        start = stop
    return arrays


def copy_to(model: nn.Module, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Writes the trained parameters into ``arrays``, which have their names and shapes."""
    for name, parameter in trainable(model).items():
        arrays[name][...] = parameter.detach().to("cpu", torch.float32).numpy()


@torch.no_grad()
def load_arrays(
    model: nn.Module, arrays: Mapping[str, npt.NDArray[Any]], *, all_parameters: bool = False
) -> None:
    """Sets the trained parameters, or all, to ``arrays``: exactly those names and shapes.

    Raises:
        CheckpointError: A name is missing or unknown, or a shape differs; nothing was changed.
    """
    parameters = dict(model.named_parameters()) if all_parameters else trainable(model)
    if missing := sorted(set(parameters) ^ set(arrays)):
        raise CheckpointError(
            f"expected the arrays of {len(parameters)} parameters, got {len(arrays)}; "
            f"they differ in {', '.join(missing[:4])}"
        )
    for name, parameter in parameters.items():
        if tuple(arrays[name].shape) != tuple(parameter.shape):
            raise CheckpointError(
                f"expected {name} of shape {tuple(parameter.shape)}, "
                f"got {tuple(arrays[name].shape)}"
            )
    for name, parameter in parameters.items():
        parameter.copy_(torch.tensor(np.asarray(arrays[name])))


def base_digest(model: nn.Module) -> str:
    """Digest of all weights of a freshly built model, trained and frozen."""
    return arrays_digest(to_arrays(model, all_parameters=True))


def difference_norm(
    arrays: Mapping[str, npt.NDArray[Any]], global_arrays: Mapping[str, npt.NDArray[Any]]
) -> float:
    """L2 norm of the difference over all arrays, summed in float64."""
    total = 0.0
    for name, array in arrays.items():
        new, old = array.reshape(-1), global_arrays[name].reshape(-1)
        for start in range(0, new.size, _NORM_BLOCK):
            stop = start + _NORM_BLOCK
            difference = np.subtract(new[start:stop], old[start:stop], dtype=np.float64)
            # Not np.dot: BLAS would start threads for it, which on a busy machine wait for long.
            total += float(np.einsum("i,i->", difference, difference))
    return math.sqrt(total)
