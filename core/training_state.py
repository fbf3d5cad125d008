"""Training that stops and goes on: weights, optimizer state and step in one checkpoint.

For training without privacy only. A DP-SGD round is never resumed: it runs again as a whole, with
fresh noise and a debit of its own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from core.checkpoints import Arrays, load_checkpoint, save_checkpoint
from core.errors import CheckpointError
from core.parameters import load_arrays, to_arrays, trainable


def save_training_state(folder: Path, model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """Writes what it takes to go on after ``step`` steps, wholly or not at all.

    Args:
        folder: Where; must not exist.
        model: Its trained parameters are saved, in fp32.
        optimizer: Over those parameters.
        step: Steps taken so far; the next one's number.

    Raises:
        CheckpointError: ``folder`` exists, or the disk cannot be written.
    """
    state = {
        f"{slot}/{name}": value.detach().cpu().numpy()
        for name, parameter in trainable(model).items()
        for slot, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
    save_checkpoint(
        folder,
        {"model": to_arrays(model), "optimizer": state},
        {"step": step, "optimizer": type(optimizer).__name__},
    )


def restore_training_state(folder: Path, model: nn.Module, optimizer: Optimizer) -> int:
    """Puts ``model`` and ``optimizer`` where ``save_training_state`` found them.

    Guarantees:
        Training that goes on ends with the weights of training that never stopped, bit for bit,
        where model, configuration, data and machine are the same.

    Args:
        folder: The checkpoint.
        model: Of the same shape, with the same parameters frozen.
        optimizer: A fresh one over its trained parameters, of the same kind.

    Returns:
        Steps taken so far; the ``first_step`` to go on with.

    Raises:
        CheckpointError: It is damaged, has no optimizer state or that of another optimizer, or
            belongs to another model; nothing was changed.
    """
    checkpoint = load_checkpoint(folder)
    step, kind = (checkpoint.metadata.get(key) for key in ("step", "optimizer"))
    if not {"model", "optimizer"} <= checkpoint.arrays.keys() or not isinstance(step, int):
        raise CheckpointError(
            f"expected weights, optimizer state and step in {folder}, "
            f"got {', '.join(sorted({*checkpoint.arrays, *checkpoint.metadata})) or 'nothing'}",
            hint="without the optimizer's state, training would go on differently",
        )
    if kind != type(optimizer).__name__:
        raise CheckpointError(
            f"expected the state of {type(optimizer).__name__} in {folder}, got {kind}"
        )
    parameters = trainable(model)
    state = _by_parameter(checkpoint.arrays["optimizer"], parameters, folder)
    for name in parameters if step else ():
        if state.get(name, {}).keys() != _slots(optimizer):
            raise CheckpointError(
                f"expected {', '.join(sorted(_slots(optimizer))) or 'nothing'} for {name} "
                f"in {folder}, got {', '.join(sorted(state.get(name, {}))) or 'nothing'}",
                hint="without the optimizer's state, training would go on differently",
            )
    load_arrays(model, checkpoint.arrays["model"])
    for name, slots in state.items():
        device = parameters[name].device
        optimizer.state[parameters[name]] = {
            # AdamW counts steps on the CPU, wherever the parameter is
            slot: value if slot == "step" else value.to(device)
            for slot, value in slots.items()
        }
    return step


def _slots(optimizer: Optimizer) -> set[str]:
    """What the optimizers of ``core.train`` keep of each parameter."""
    if isinstance(optimizer, torch.optim.AdamW):
        return {"step", "exp_avg", "exp_avg_sq"}
    return {"momentum_buffer"} if optimizer.defaults["momentum"] else set()


def _by_parameter(
    arrays: Arrays, parameters: Mapping[str, nn.Parameter], folder: Path
) -> dict[str, dict[str, Tensor]]:
    state: dict[str, dict[str, Any]] = {}
    for key, array in arrays.items():
        slot, _, name = key.partition("/")
        scalar = slot == "step"
        if name not in parameters or array.shape != (() if scalar else parameters[name].shape):
            raise CheckpointError(
                f"expected the optimizer's state of this model in {folder}, "
                f"got {key} of shape {tuple(array.shape)}"
            )
        state.setdefault(name, {})[slot] = torch.tensor(array)
    return state
