"""`cloister coordinator export`: a run's model, record and curves, in the clear."""

import argparse
import sys

from coordinator.service.export import export_run
from coordinator.service.folder import CoordinatorFolder


def run_export(options: argparse.Namespace) -> int:
    """Opens the newest checkpoint and writes the model."""
    folder = CoordinatorFolder(options.folder)
    folder.config()
    server_round = export_run(folder, options.run_id, options.output)
    sys.stdout.write(f"model of round {server_round}, record and curves: {options.output}\n")
    return 0
