"""Tests of a trained model for leakage and bias, and the report."""
