"""Tier 0: is what ran what was accounted for?"""
