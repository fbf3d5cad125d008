"""Secure aggregation, protocol cloister-secagg/1: the coordinator opens sums alone. No IO here."""
