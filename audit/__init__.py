"""The audit: what leaked, who is served worse, and a report that can be trusted."""
