"""The command `cloister`: the composition root."""
