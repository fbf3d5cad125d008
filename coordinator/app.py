"""The coordinator as a Flower ``ServerApp``: the same app on every grid."""

import gc
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from coordinator.flower import COORDINATOR_NODE_ID, quiet_flower
from coordinator.rounds import RunPlan, run_rounds
from coordinator.run_directory import RunDirectory
from core.sealed_arrays import Seal


def build_server_app(
    plan: RunPlan, folder: Path, *, run_id: str | None = None, seal: Seal | None = None
) -> ServerApp:
    """An app that runs ``plan`` in the run directory ``folder``, or goes on with it there.

    Args:
        plan: The run.
        folder: The run directory.
        run_id: The id of a new run; ``None`` for a fresh random one.
        seal: Encrypts the checkpoints; ``None`` leaves them in the clear.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        quiet_flower()
        opened = RunDirectory.open(
            folder, plan.config, task_digest=plan.terms.digest(), run_id=run_id, seal=seal
        )
        with opened as run:
            run_rounds(plan, grid, run)

    return app


def start(app: ServerApp, grid: Grid) -> None:
    """Runs the app on a grid, outside Flower's engine.

    Everything that is there by now stays for the run: the garbage collector is told not to look
    at it again, which with torch and its half a million objects takes longer than a small round.

    Raises:
        CloisterError: Whatever ``run_rounds`` raises.
    """
    context = Context(
        run_id=grid.run.run_id,
        node_id=COORDINATOR_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config={},
    )
    gc.freeze()
    try:
        app(grid, context)
    finally:
        gc.unfreeze()
