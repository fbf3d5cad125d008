"""A run's sealed result, opened; ``cloister coordinator export`` writes it in the clear."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordinator.curves import write_curves
from coordinator.planning import leave_model
from coordinator.run_directory import CHECKPOINTS
from coordinator.service.folder import CoordinatorFolder
from coordinator.service.run_queue import RunQueue
from coordinator.state import RunState, restore_state
from core.audit_messages import AUDIT_FILE
from core.audit_seed import SEED_FILE
from core.blueprint import Blueprint, make_blueprint
from core.config import FederationConfig
from core.config_files import parse_config
from core.errors import CheckpointError, ServiceError
from core.log_messages import CHECKPOINT_FILE, SIGNED_LOG_FILE
from core.parameters import to_arrays
from core.run_record import RECORD_FILE, RUN_FILE, SUMMARY_FILE, TERMS_FILE, read_header

# The seed that the run committed to is shown with its result: whoever audits needs it.
_FILES: Final = (
    RUN_FILE,
    TERMS_FILE,
    RECORD_FILE,
    CHECKPOINT_FILE,
    SIGNED_LOG_FILE,
    SUMMARY_FILE,
    SEED_FILE,
    AUDIT_FILE,
)


@dataclass(frozen=True)
class Released:
    """What a run that has ended left in the coordinator's folder, opened."""

    run: Path
    """The run's directory."""
    number: int
    """Flower's number of the run."""
    config: FederationConfig
    blueprint: Blueprint
    state: RunState
    """After the last round that was applied."""


def open_released(folder: CoordinatorFolder, queue: RunQueue, run_id: str) -> Released:
    """Opens the newest checkpoint of a run that has ended.

    Raises:
        ServiceError: There is no such run, or it has not ended.
        CheckpointError: There is no checkpoint, or it is damaged.
        VaultError: The vault's key is another one.
    """
    queued = queue.get(run_id)
    state = queued.status.state
    if state in ("queued", "running"):
        raise ServiceError(
            f"expected a run that has ended, got one that is {state}",
            hint="wait for it, or end it: cloister coordinator stop --run",
        )
    run = folder.run(run_id)
    header = read_header(run / RUN_FILE)
    config = parse_config(FederationConfig, header["config"], origin=str(run / RUN_FILE))
    blueprint = make_blueprint(config)
    initial = to_arrays(blueprint.build())
    restored = restore_state(run / CHECKPOINTS, run_id, initial, seal=folder.vault())
    if restored is None:
        raise CheckpointError(f"expected a checkpoint of run {run_id}, got none")
    return Released(run, queued.number, config, blueprint, restored)


def export_run(folder: CoordinatorFolder, run_id: str, output: Path) -> int:
    """Writes what ``cloister simulate`` would have left.

    Args:
        folder: The coordinator's.
        run_id: A run that has ended.
        output: A new folder.

    Returns:
        The rounds that are in the model.

    Raises:
        ServiceError: The run has not ended, or ``output`` cannot be used.
        CheckpointError: There is no checkpoint, or it is damaged.
        VaultError: The vault's key is another one.
    """
    with folder.store() as store:
        released = open_released(folder, RunQueue(store), run_id)
    _copy(released.run, output)
    arrays = released.state.arrays
    leave_model(output, released.config, released.blueprint, arrays, run_id=run_id)
    write_curves(output)
    return released.state.server_round


def _copy(run: Path, output: Path) -> None:
    try:
        output.mkdir(parents=True)
        for name in _FILES:
            if (run / name).exists():
                shutil.copy(run / name, output / name)  # with its mode
    except FileExistsError as error:
        raise ServiceError(
            f"expected no folder at {output} yet, got one", hint="choose another --output"
        ) from error
    except OSError as error:
        raise ServiceError(f"cannot write {output}: {error.strerror}") from error
