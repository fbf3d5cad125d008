"""How a round's updates become what a strategy sees: one by one, or as a sum that alone is open."""
