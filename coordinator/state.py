"""What the coordinator must not lose between two rounds, and its checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from coordinator.strategies import StrategyState
from core.checkpoints import (
    checkpoint_folder,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from core.errors import RunError
from core.messages import LedgerHead
from core.run_record import RoundResult
from core.sealed_arrays import Seal

MODEL: Final = "model"
_STRATEGY: Final = "strategy"
# The newest, and one to go back to should the disk damage it.
_KEEP: Final = 2


@dataclass(frozen=True)
class RunState:
    """The run after ``result.server_round`` rounds."""

    arrays: Mapping[str, npt.NDArray[Any]]
    strategy: StrategyState
    witnesses: Mapping[str, LedgerHead]
    """The last ledger head that the coordinator saw of each site."""
    result: RoundResult

    @property
    def server_round(self) -> int:
        """Rounds applied; 0 before the first."""
        return self.result.server_round


def save_state(root: Path, run_id: str, state: RunState, *, seal: Seal | None = None) -> None:
    """Writes the checkpoint of ``state`` and removes the oldest ones.

    Raises:
        CheckpointError: The disk cannot be written.
        VaultError: The seal cannot be used.
    """
    metadata = {
        "run_id": run_id,
        "witnesses": {site: head.model_dump() for site, head in state.witnesses.items()},
        "result": state.result.line(),
    }
    folder = checkpoint_folder(root, state.server_round)
    arrays = {MODEL: state.arrays}
    if state.strategy:
        arrays[_STRATEGY] = state.strategy
    save_checkpoint(folder, arrays, metadata, seal=seal)
    prune_checkpoints(root, _KEEP)


def restore_state(
    root: Path,
    run_id: str,
    initial_arrays: Mapping[str, npt.NDArray[Any]],
    *,
    seal: Seal | None = None,
) -> RunState | None:
    """The newest checkpoint's state; ``None`` where there is none.

    A damaged newest checkpoint is an error: going back by itself would make every site train,
    and spend, a round that it has already paid for.

    Raises:
        CheckpointError: The newest checkpoint is damaged.
        VaultError: It was sealed with another key, or altered.
        RunError: It is another run's, another model's or another round's.
    """
    newest = newest_checkpoint(root)
    if newest is None:
        return None
    checkpoint = load_checkpoint(newest, seal=seal)
    try:
        found = checkpoint.metadata["run_id"]
        state = RunState(
            arrays=checkpoint.arrays[MODEL],
            strategy=checkpoint.arrays.get(_STRATEGY, {}),
            witnesses={
                site: LedgerHead(**head) for site, head in checkpoint.metadata["witnesses"].items()
            },
            result=RoundResult.from_line(checkpoint.metadata["result"]),
        )
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise RunError(f"expected a coordinator's checkpoint at {newest}, got another") from error
    if found != run_id:
        raise RunError(f"expected a checkpoint of run {run_id} at {newest}, got one of {found}")
    if _shapes(state.arrays) != _shapes(initial_arrays):
        raise RunError(f"expected the arrays of this model at {newest}, got others")
    if newest != checkpoint_folder(root, state.server_round):
        raise RunError(
            f"expected the checkpoint of round {state.server_round} under its own name, "
            f"got it as {newest}",
            hint="somebody renamed a checkpoint: the newest one is not to be trusted",
        )
    return state


def _shapes(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (np.shape(array), str(array.dtype)) for name, array in arrays.items()}
