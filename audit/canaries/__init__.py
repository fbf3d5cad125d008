"""Tier 1: differential privacy, audited by canaries."""
