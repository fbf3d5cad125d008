"""The report: one signed JSON, and what is drawn from it."""
