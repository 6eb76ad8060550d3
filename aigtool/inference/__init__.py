"""The skipping runtime: a gated network made ready to serve."""
