"""Tier 2: can one tell who was in the training data?"""
