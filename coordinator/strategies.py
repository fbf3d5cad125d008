"""Flower's strategies as pure functions of (state, replies).

Only their ``aggregate_train`` is used, on real messages. Their ``configure_train`` samples with
Python's global generator and waits for ever for a node that is away; the round loop does both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedYogi,
    Krum,
)

from coordinator.flower import instruction
from core.config import NEEDS_CLEAR_UPDATES, StrategySection
from core.errors import ConfigError, TrainingError

_Array = npt.NDArray[Any]
Arrays = Mapping[str, _Array]
# Moments and momentum under names such as "m_t/blocks.0.weight"; empty where there are none.
StrategyState = Mapping[str, npt.NDArray[Any]]

_WEIGHT: Final = "num-examples"
# Elements that are summed at once over all sites: sum and product stay in the cache.
_BLOCK: Final = 32_768


@dataclass(frozen=True)
class Contribution:
    """A site's new weights, and the public size that weighs them.

    Under secure aggregation, what was opened for several sites; see ``coordinator.central_step``
    for sums of gradients.
    """

    site: str
    weight: int
    arrays: Arrays


class Strategy(Protocol):
    """How updates become the next model."""

    def aggregate(
        self,
        state: StrategyState,
        server_round: int,
        global_arrays: Arrays,
        contributions: Sequence[Contribution],
    ) -> tuple[dict[str, npt.NDArray[np.float32]], StrategyState]:
        """The next weights and the next state.

        Guarantees:
            A pure function: the same arguments give the same bits, whatever the order of the
            contributions, and no argument changes.

        Raises:
            TrainingError: There is nothing to aggregate, or the result is not finite.
        """


def build_strategy(
    section: StrategySection, central: Callable[[], Strategy] | None = None
) -> Strategy:
    """The strategy that the configuration names.

    Args:
        section: Names it.
        central: Makes the strategy ``central``, which needs the model and the training's
            hyperparameters beside its section.

    Raises:
        ConfigError: ``central`` is asked for where there is no model.
    """
    if section.name != "central":
        return FlowerStrategy(section)
    if central is None:
        raise ConfigError(
            'expected a model for strategy.name = "central", got a run without one',
            hint="the step is taken by train.optimizer at the coordinator",
        )
    return central()


@dataclass(frozen=True)
class FlowerStrategy:
    """One of Flower's strategies, built anew for every call: it keeps nothing in between."""

    section: StrategySection

    def aggregate(
        self,
        state: StrategyState,
        server_round: int,
        global_arrays: Arrays,
        contributions: Sequence[Contribution],
    ) -> tuple[dict[str, npt.NDArray[np.float32]], StrategyState]:
        """See ``Strategy.aggregate``."""
        if not contributions:
            raise TrainingError("expected at least one usable reply to aggregate, got none")
        strategy = self._flower()
        _restore(strategy, state, global_arrays)
        messages = self._messages(global_arrays, contributions)
        # A lying site's numbers may overflow where they are compared with others'.
        with np.errstate(**self._silence()):
            record, _ = strategy.aggregate_train(server_round, messages)
        if record is None:
            raise TrainingError(f"Flower's {self.section.name} gave no arrays")
        # FedAdam's bias correction is a float64 scalar, which widens its result.
        arrays = {
            name: np.asarray(array.numpy(), dtype=np.float32) for name, array in record.items()
        }
        if self.section.name == "krum":
            arrays = {name: global_arrays[name] + arrays[name] for name in arrays}
        after = _state_of(strategy, sorted(global_arrays))
        check_finite(
            arrays,
            after,
            server_round,
            hint="lower strategy.server_learning_rate, or set strategy.max_update_norm",
        )
        return arrays, after

    def _messages(
        self, global_arrays: Arrays, contributions: Sequence[Contribution]
    ) -> list[Message]:
        if self.section.name not in NEEDS_CLEAR_UPDATES:
            # All others of Flower's strategies here begin with this mean; one reply is its own
            # mean, bit for bit, and Flower's work for each of many costs more than the arithmetic.
            return [_as_message(_mean(contributions))]
        ordered = sorted(contributions, key=lambda contribution: contribution.site)
        if self.section.name == "fedmedian":
            return [_as_message(contribution.arrays) for contribution in ordered]
        self._check_majority(len(ordered))
        # Differences: Flower's distances are |x|^2 + |y|^2 - 2 x.y in fp32, in which a step that
        # is small beside the weights is lost.
        return [
            _as_message({name: one.arrays[name] - global_arrays[name] for name in one.arrays})
            for one in ordered
        ]

    def _silence(self) -> dict[str, Any]:
        return {"over": "ignore", "invalid": "ignore"} if self.section.name == "krum" else {}

    def _check_majority(self, count: int) -> None:
        """Krum's own condition (Blanchard et al. 2017): 2 f + 2 < n. Flower's class takes any."""
        lying = self.section.num_malicious_nodes
        if self.section.name == "krum" and not 2 * lying + 2 < count:
            raise TrainingError(
                f"expected more than {2 * lying + 2} usable replies for krum to bear {lying} lying "
                f"sites, got {count}",
                hint="raise strategy.min_train_nodes, or lower strategy.num_malicious_nodes",
            )

    def _flower(self) -> FedAvg:
        section = self.section
        match section.name:
            case "fedavg":
                return FedAvg()
            case "fedprox":
                return FedProx(proximal_mu=section.proximal_mu)
            case "fedavgm":
                return FedAvgM(
                    server_learning_rate=section.server_learning_rate,
                    server_momentum=section.server_momentum,
                )
            case "fedmedian":
                return FedMedian()
            case "krum":
                return Krum(num_malicious_nodes=section.num_malicious_nodes)
            case "central":
                raise ConfigError("expected a strategy of Flower's, got central")
            case "fedadam" | "fedyogi":
                kind = FedAdam if section.name == "fedadam" else FedYogi
                return kind(
                    eta=section.server_learning_rate,
                    beta_1=section.beta1,
                    beta_2=section.beta2,
                    tau=section.tau,
                )


def check_finite(arrays: Arrays, state: StrategyState, server_round: int, *, hint: str) -> None:
    """Checks what a round left; an infinite moment would stop the weights for ever, and silently.

    Raises:
        TrainingError: Something is not finite.
    """
    for name, array in (*arrays.items(), *state.items()):
        if not np.isfinite(array).all():
            raise TrainingError(
                f"expected finite weights after round {server_round}, "
                f"got NaN or infinity in {name}",
                hint=hint,
            )


class _HeldArray(Array):
    """An ``Array`` that lends its ndarray to Flower's aggregation instead of serialising it."""

    def __init__(self, ndarray: npt.NDArray[Any]) -> None:
        # Past Array.__init__ and __setattr__, which serve serialising: this is never serialised.
        self.__dict__.update(
            dtype="float32", shape=ndarray.shape, stype="numpy.ndarray", data=b"", _held=ndarray
        )

    def numpy(self) -> npt.NDArray[Any]:
        held: npt.NDArray[Any] = self.__dict__["_held"]
        return held


def _held(arrays: Arrays) -> ArrayRecord:
    record = ArrayRecord()
    for name in sorted(arrays):
        record[name] = _HeldArray(arrays[name])
    return record


def _mean(contributions: Sequence[Contribution]) -> Arrays:
    """The weighted mean, in the order and with the rounding of Flower's own."""
    ordered = sorted(contributions, key=lambda contribution: contribution.site)
    total = sum(contribution.weight for contribution in ordered)
    factors = [contribution.weight / total for contribution in ordered]
    return {
        name: _weighted_sum([contribution.arrays[name] for contribution in ordered], factors)
        for name in sorted(ordered[0].arrays)
    }


def _weighted_sum(arrays: Sequence[_Array], factors: Sequence[float]) -> _Array:
    flat = [array.reshape(-1) for array in arrays]
    result = np.empty_like(flat[0])
    scaled = np.empty_like(flat[0][:_BLOCK])
    for start in range(0, result.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        part = result[block]
        np.multiply(flat[0][block], factors[0], out=part)
        for array, factor in zip(flat[1:], factors[1:], strict=True):
            np.add(part, np.multiply(array[block], factor, out=scaled[: part.size]), out=part)
    return result.reshape(arrays[0].shape)


def _as_message(arrays: Arrays) -> Message:
    content = RecordDict({"arrays": _held(arrays), "metrics": MetricRecord({_WEIGHT: 1})})
    return instruction(
        content, run_id=0, message_id="", dst_node_id=0, message_type=MessageType.TRAIN
    )


def _restore(strategy: FedAvg, state: StrategyState, global_arrays: Arrays) -> None:
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = _held(global_arrays)
        momentum = _group(state, "momentum_vector")
        strategy.momentum_vector = [momentum[name] for name in sorted(momentum)] or None
    elif isinstance(strategy, FedAdam | FedYogi):
        strategy.current_arrays = {name: global_arrays[name] for name in sorted(global_arrays)}
        strategy.m_t = _group(state, "m_t") or None
        strategy.v_t = _group(state, "v_t") or None


def _state_of(strategy: FedAvg, names: Sequence[str]) -> StrategyState:
    groups: dict[str, Arrays] = {}
    if isinstance(strategy, FedAvgM) and strategy.momentum_vector is not None:
        groups["momentum_vector"] = dict(zip(names, strategy.momentum_vector, strict=True))
    elif isinstance(strategy, FedAdam | FedYogi):
        groups = {"m_t": strategy.m_t or {}, "v_t": strategy.v_t or {}}
    return {
        f"{group}/{name}": np.asarray(array)
        for group, arrays in groups.items()
        for name, array in arrays.items()
    }


def _group(state: StrategyState, group: str) -> dict[str, npt.NDArray[Any]]:
    prefix = f"{group}/"
    return {
        name.removeprefix(prefix): state[name] for name in sorted(state) if name.startswith(prefix)
    }
