"""Clipped sums from one backward pass: layers record, then norms, factors and weighted products."""
