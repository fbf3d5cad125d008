"""The wire between coordinator and site: contract, strict parsing, transfers, sessions."""
