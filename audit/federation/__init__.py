"""Tier 3: what updates as sent, and the sites that send them, give away."""
