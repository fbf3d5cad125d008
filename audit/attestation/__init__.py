"""What others can verify: attestations, receipts and the log."""
