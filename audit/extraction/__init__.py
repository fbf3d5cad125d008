"""Tier 2: does the model give records away?"""
