"""Private training: random sources, Poisson sampling, DP-SGD, accounting and the ledger."""
