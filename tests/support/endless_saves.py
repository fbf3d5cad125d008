"""Saves checkpoints without end, to be killed: ``python endless_saves.py ROOT FIRST_ROUND``."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from core.checkpoints import checkpoint_folder, save_checkpoint


def main() -> None:
    """Tells each round on stdout once its checkpoint is saved."""
    root, server_round = Path(sys.argv[1]), int(sys.argv[2])
    while True:
        filled = np.full(100_000, server_round, dtype=np.int64)
        arrays = {"model": {"a": filled, "b": filled}, "strategy": {"m": filled}}
        save_checkpoint(checkpoint_folder(root, server_round), arrays, {"round": server_round})
        sys.stdout.write(f"{server_round}\n")
        sys.stdout.flush()
        server_round += 1


if __name__ == "__main__":
    main()
