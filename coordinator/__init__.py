"""The consortium's program: round loop, strategies, validation of replies, grids, run record."""
