"""Several processes of one site that work on each step together."""
