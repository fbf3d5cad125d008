"""The strategy ``central``: one step of the configured optimizer on the opened sum of gradients.

With ``privacy.mode = "distributed"`` a round is one step of DP-SGD over the union of the sites.
The sites clip, sum and noise; what follows from the sum, the step itself, costs no privacy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim import Optimizer

from coordinator.strategies import Arrays, Contribution, StrategyState, check_finite
from core.errors import CheckpointError, TrainingError
from core.parameters import load_arrays, to_arrays, trainable
from core.train import TrainConfig, learning_rate, make_optimizer

_NO_STATE: Final[dict[str, Any]] = {}


@dataclass(frozen=True)
class CentralStep:
    """One optimizer step for each round, as a pure function of weights, moments and the sum.

    Each ``Contribution`` is an opened sum: its ``arrays`` are clipped gradients with their noise,
    added up over some sites, and its ``weight`` is the sum of those sites' public sizes.

    The sum is divided by the *expected* batch of the sites in it, ``sample_rate`` times their
    public sizes. The realised size is private: dividing by it would release one number more, which
    no accountant here covers. Sites that dropped out are in neither sum nor size, so that the
    step keeps its length.
    """

    build_model: Callable[[], nn.Module]
    """A model with the run's architecture, the same one each time or not: its trained parameters
    are overwritten."""
    train: TrainConfig
    """Optimizer and schedule."""
    sample_rate: float
    """Each record's chance to be in a step; public and the same at all sites."""
    num_rounds: int
    """Steps of the whole run, for the schedule."""

    def aggregate(
        self,
        state: StrategyState,
        server_round: int,
        global_arrays: Arrays,
        contributions: Sequence[Contribution],
    ) -> tuple[dict[str, npt.NDArray[np.float32]], StrategyState]:
        """See ``Strategy.aggregate``; the state holds moments such as ``exp_avg/head.weight``.

        Raises:
            TrainingError: There is nothing to aggregate, or the result is not finite.
            CheckpointError: Weights, sum and state are not of one model.
        """
        gradients = self._mean(contributions)
        model = self.build_model()
        load_arrays(model, global_arrays)
        optimizer = make_optimizer(model, self.train)
        names = {parameter: name for name, parameter in trainable(model).items()}
        _set_gradients(names, gradients)
        _restore(optimizer, names, state)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.train, server_round - 1, self.num_rounds)
        optimizer.step()
        arrays, after = to_arrays(model), _state_of(optimizer, names)
        check_finite(arrays, after, server_round, hint="lower train.learning_rate")
        return arrays, after

    def _mean(self, contributions: Sequence[Contribution]) -> dict[str, npt.NDArray[np.float32]]:
        """The sums over all contributions, over the public expected batch."""
        if not contributions:
            raise TrainingError("expected an opened sum to take a step on, got none")
        ordered = sorted(contributions, key=lambda contribution: contribution.site)
        expected = self.sample_rate * sum(contribution.weight for contribution in ordered)
        if not expected > 0:
            raise TrainingError(f"expected a batch of some public size, got {expected}")
        if any(one.arrays.keys() != ordered[0].arrays.keys() for one in ordered):
            raise CheckpointError("expected sums over the parameters of one model, got others")
        means: dict[str, npt.NDArray[np.float32]] = {}
        for name in sorted(ordered[0].arrays):
            total = np.zeros(ordered[0].arrays[name].shape, dtype=np.float64)
            for contribution in ordered:
                total += contribution.arrays[name]
            means[name] = np.asarray(total / expected, dtype=np.float32)
        return means


def _set_gradients(
    names: Mapping[nn.Parameter, str], gradients: Mapping[str, npt.NDArray[np.float32]]
) -> None:
    if set(names.values()) != set(gradients):
        raise CheckpointError("expected a sum over the trained parameters, got one over others")
    for parameter, name in names.items():
        if tuple(parameter.shape) != gradients[name].shape:
            raise CheckpointError(
                f"expected a sum for {name} of shape {tuple(parameter.shape)}, "
                f"got {gradients[name].shape}"
            )
        parameter.grad = torch.from_numpy(gradients[name]).to(parameter.device)


def _restore(optimizer: Optimizer, names: Mapping[nn.Parameter, str], state: StrategyState) -> None:
    """Gives the optimizer the moments of the round before; without any it begins anew."""
    parameters = {name: parameter for parameter, name in names.items()}
    for entry, array in state.items():
        kind, _, name = entry.partition("/")
        parameter = parameters.get(name)
        if parameter is None or array.shape not in ((), tuple(parameter.shape)):
            raise CheckpointError(f"expected the state of a trained parameter, got {entry}")
        optimizer.state[parameter][kind] = torch.tensor(array)


def _state_of(optimizer: Optimizer, names: Mapping[nn.Parameter, str]) -> StrategyState:
    return {
        f"{kind}/{name}": value.detach().cpu().numpy().copy()
        for parameter, name in names.items()
        for kind, value in optimizer.state.get(parameter, _NO_STATE).items()
        if isinstance(value, torch.Tensor)  # SGD without momentum keeps None
    }
