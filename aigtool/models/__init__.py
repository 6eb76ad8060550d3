"""Networks by name, and model files."""
